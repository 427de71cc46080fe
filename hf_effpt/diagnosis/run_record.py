"""Record of a run: its `run.json`, or what the last checkpoint tells of one that has not finished."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.hub.folders import checkpoints_in

# The main part of a composite loss; the sum of the parts is on no meaningful scale.
MAIN = ("discriminator_loss", "candidate_loss", "prediction_loss")


def is_run(folder: Path) -> bool:
    """`True` for the folder of a run, finished or with a checkpoint."""
    return (folder / "run.json").is_file() or bool(checkpoints_in(folder))


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run; of one that has not finished, what its last checkpoint tells in the same form.

    Raises an `EffptError` for a folder without either.
    """
    if (folder / "run.json").is_file():
        return read_json(folder / "run.json")
    states = [path / "trainer_state.json" for path in checkpoints_in(folder)]
    states = [path for path in states if path.is_file()]
    if not states:
        raise EffptError(f"{folder} has neither a run.json nor a checkpoint; give the folder of a run.")
    recipe = folder / "recipe.yaml"
    found = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    history = read_json(states[-1])["log_history"]
    fraction = next((entry["clock"] for entry in reversed(history) if "clock" in entry), 0.0)
    return {"history": history, "recipe": found, "clock": {"unit": "share", "budget": 1.0, "share": fraction}}


def entries_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Log entries with a training loss."""
    return [entry for entry in record.get("history") or () if "loss" in entry]


def main_loss(entry: Mapping[str, Any]) -> float:
    """The loss of a log entry, or the main part of a composite one; NaN if it was not finite, which JSON has not."""
    value = next((entry[name] for name in MAIN if name in entry), entry["loss"])
    return math.nan if value is None else float(value)
