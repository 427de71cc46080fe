"""Kinds of fault by their names in the results."""

from tests.faults import damages, disks, kills
from tests.faults.runs import Kind

KINDS: dict[str, Kind] = {
    "SIGKILL at a random time": kills.at_random_times,
    "SIGKILL while a checkpoint or the export is written": kills.while_writing,
    "SIGTERM or SIGINT": kills.by_signal,
    "damage": damages.damages,
    "disk full": disks.full,
}
