"""Table of reference system time: seconds of each operation on one named machine.

Each is timed once and multiplied by its count (Kaddour et al., 2023, No Train No Gain, section 2), so that equal work
is charged equally, however busy the machine is.
"""

import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub.utils import WeakFileLock

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.data.cache import cache_folder

logger = logging.getLogger(__name__)

TOLERANCE = 0.95  # least time ratio of deeper to shallower model that counts as noise


def this_system(device: torch.device) -> str:
    """Name of this machine, to which its measured times belong."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{name}{threads}, torch {torch.__version__}"


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class ReferenceTimes:
    """Seconds by operation on one machine, in a JSON file `path` that runs share; the first measurement creates it.

    Times can be added only if `system`, the name of this machine, is the table's. Raises `EffptError` if the file is
    not such a table.
    """

    def __init__(self, path: Path, system: str) -> None:
        self.path, self.here = path, system
        self.system, self._seconds = system, {}
        self._read()

    @classmethod
    def open(cls, path: str | None, device: torch.device) -> "ReferenceTimes":
        """Opens the table in the file `path`; by default this machine's own in the cache."""
        system = this_system(device)
        name = "".join(letter if letter.isalnum() else "-" for letter in system)
        return cls(Path(path) if path else cache_folder() / "reference" / f"{name}.json", system)

    def _read(self) -> None:
        if not self.path.is_file():
            return
        try:
            table = read_json(self.path)
            self.system, self._seconds = str(table["system"]), {k: float(v) for k, v in table["seconds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EffptError(
                f"{self.path} is no table of reference times ({error}); it must be JSON with the keys `system` and "
                "`seconds`. Give another file as `training.reference_times`, or leave it out to measure here."
            ) from error

    def seconds(self, operation: str, measure: Callable[[], float]) -> float:
        """Seconds of one `operation`, from the table or else from `measure`.

        Raises `EffptError` if the table is another machine's and lacks the operation.
        """
        if operation not in self._seconds:
            if self.system != self.here:
                raise EffptError(
                    f"{self.path} holds the times of {self.system!r}, without `{operation}`, and this machine "
                    f"({self.here!r}) cannot add to them; measure it there, or leave `reference_times` out."
                )
            self._add(operation, measure())
            for fault in self.faults():
                logger.warning("reference times: %s; remove %s to measure again, on an idle machine", fault, self.path)
        return self._seconds[operation]

    def total(self, counts: Mapping[str, int]) -> float:
        """Sum of count times seconds; raises `EffptError` if the table lacks an operation."""
        if missing := sorted(set(counts) - set(self._seconds)):
            raise EffptError(f"{self.path} has no time for {', '.join(missing)}; measure them on {self.system!r}.")
        return sum(count * self._seconds[operation] for operation, count in counts.items())

    def _add(self, operation: str, seconds: float) -> None:
        """Adds a time, unless another process added one first; both then charge that one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{self.path}.lock"):
            self._read()
            self._seconds.setdefault(operation, seconds)
            write_json(self.path, {"system": self.system, "seconds": dict(sorted(self._seconds.items()))})

    def faults(self) -> list[str]:
        """Descriptions of implausible times: operations that take less time with more layers."""
        groups: dict[str, list[tuple[int, float, str]]] = {}
        for operation, seconds in self._seconds.items():
            before, mark, rest = operation.partition("|layers ")
            layers, _, after = rest.partition("|")
            if mark:
                size = sum(int(part.split("x")[0]) * int(part.split("x")[1]) for part in layers.split("+") if part)
                groups.setdefault(f"{before}|{after}", []).append((size, seconds, operation))
        found = []
        for entries in groups.values():
            entries.sort()
            for (_, fewer, smaller), (_, more, larger) in pairwise(entries):
                if more < TOLERANCE * fewer:
                    found.append(f"`{larger}` takes {more:.4g} s, less than `{smaller}` with {fewer:.4g} s")
        return found
