"""Record of a run: its `run.json`, or what the last checkpoint tells of one that has not finished."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json
from hf_effpt.hub.folders import DIVERGED, RECIPE, checkpoints_in, read_recipe

# The main part of a composite loss; the sum of the parts is on no meaningful scale.
MAIN = ("discriminator_loss", "candidate_loss", "prediction_loss")


def is_run(folder: Path) -> bool:
    """`True` for the folder of a run, finished, diverged or with a checkpoint.

    Raises an `EffptError` for folders that such a run is in, or that are in one.
    """
    if any((folder / name).is_file() for name in ("run.json", DIVERGED)) or checkpoints_in(folder):
        return True
    if (folder / "trainer_state.json").is_file():
        raise EffptError(f"{folder} is a checkpoint; give the folder of its run, {folder.resolve().parent}.")
    if (folder / "plan.json").is_file() and (folder / "runs").is_dir():
        raise EffptError(
            f"{folder} is a comparison, which its report.html tells of; give the folder of one of its runs, such as "
            f"{next(iter(sorted((folder / 'runs').glob('*/seed-*/budget-*/'))), folder / 'runs')}."
        )
    return False


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a run; of one that has not finished, what its last checkpoint tells in the same form.

    Of one that has diverged in a comparison, its record of that. Raises an `EffptError` for a folder without either.
    """
    is_run(folder)
    if (folder / "run.json").is_file():
        return read_json(folder / "run.json")
    if (folder / DIVERGED).is_file():
        return read_json(folder / DIVERGED) | {"recipe": _recipe_in(folder)}
    states = [path / "trainer_state.json" for path in checkpoints_in(folder)]
    states = [path for path in states if path.is_file()]
    if not states:
        raise EffptError(f"{folder} has neither a run.json nor a checkpoint; give the folder of a run.")
    history = read_json(states[-1])["log_history"]
    fraction = next((entry["clock"] for entry in reversed(history) if "clock" in entry), 0.0)
    return {
        "history": history,
        "recipe": _recipe_in(folder),
        "clock": {"unit": "share", "budget": 1.0, "share": fraction},
    }


def _recipe_in(folder: Path) -> dict[str, Any]:
    return read_recipe(folder / RECIPE) if (folder / RECIPE).is_file() else {}


def entries_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Log entries with a training loss."""
    return [entry for entry in record.get("history") or () if "loss" in entry]


def main_loss(entry: Mapping[str, Any]) -> float:
    """The loss of a log entry, or the main part of a composite one; NaN if it was not finite, which JSON has not."""
    value = next((entry[name] for name in MAIN if name in entry), entry["loss"])
    return math.nan if value is None else float(value)
