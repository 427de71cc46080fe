"""Grid of a comparison: its runs, their order and their folders, and the plan of the comparison."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.hub.folders import DIVERGED
from hf_effpt.pretraining import FREE
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.checkpoints import checkpoints_in

from .arms import SET_BY_GRID, Arm, file_name

RECORD, SCORES = "run.json", "evaluation.json"


@dataclass(frozen=True)
class Run:
    """One run of a comparison, in the output folder of its recipe.

    `seed` is that of weights, data order and masks; runs of equal seed are a pair. `fraction` is its share of the
    whole budget, at the end of which its learning rate is fully decayed.
    """

    arm: str
    seed: int
    fraction: float
    recipe: Recipe = field(compare=False)

    @property
    def folder(self) -> Path:
        return Path(self.recipe.training.output_dir)

    @property
    def log(self) -> Path:
        """File of the run's output. It lies beside the folder of the run, which may be removed."""
        return self.folder.with_suffix(f"{self.folder.suffix}.log")

    def record(self) -> dict[str, Any] | None:
        """Returns the content of `run.json`; `None` while the run is not finished."""
        return _json(self.folder / RECORD)

    def scores(self) -> dict[str, Any] | None:
        """Returns the content of `evaluation.json`; `None` while there is none."""
        return _json(self.folder / SCORES)

    def divergence(self) -> dict[str, Any] | None:
        """Returns the record of [`RunDiverged`], with its `message`; `None` if the run has not diverged."""
        return _json(self.folder / DIVERGED)

    def has_diverged(self) -> bool:
        if self.divergence() is not None:
            return True
        loss = ((self.record() or {}).get("evaluation") or {}).get("held_out_loss")
        return loss is not None and not math.isfinite(loss)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise EffptError(f"{path} is damaged ({error}); remove it, and start the comparison again.") from error


def grid(arms: Sequence[Arm], clock: Clock, seeds: Sequence[int], fractions: Sequence[float], out: Path) -> list[Run]:
    """Returns all runs in their order of execution.

    The arms take turns at equal seed and budget. Each seed begins with another arm, so that none always has the
    machine at its best. A seed is complete before the next begins. Raises an `EffptError` for settings that are
    invalid at one of the budgets, such as a longer warm-up.
    """
    runs = []
    for number, seed in enumerate(seeds):
        turn = number % len(arms)
        for fraction in sorted(fractions):
            for arm in [*arms[turn:], *arms[:turn]]:
                folder = out / "runs" / file_name(arm.name) / f"seed-{seed}" / f"budget-{fraction:g}"
                runs.append(Run(arm.name, seed, fraction, arm.recipe(clock.share(fraction), seed, str(folder))))
    return runs


def claim(out: Path, runs: Sequence[Run], clock: Clock, primary: str = "held_out_loss") -> dict[str, Any]:
    """Checks that the folder is free or holds this comparison, perhaps with fewer arms, and writes `plan.json`.

    Returns the plan: `budget`, `arms`, and `seeds` (their number) and `primary` (the measure of the verdicts) as they
    were at the first call. Raises an `EffptError` if the folder holds another comparison, or something else.
    """
    plan, seeds = out / "plan.json", len({run.seed for run in runs})
    wanted: dict[str, Any] = {"budget": clock.share(1.0), "seeds": seeds, "primary": primary}
    wanted["arms"] = {run.arm: identity(run.recipe) for run in runs}
    if before := _json(plan):
        if before["budget"] != wanted["budget"]:
            raise EffptError(
                f"{out} holds a comparison at {before['budget']}, not {wanted['budget']}; name another `--out`."
            )
        for name, recipe in before["arms"].items():
            new = wanted["arms"].get(name, recipe)
            if recipe != new and _has_begun(out, name):
                changed = [
                    f"{section}.{key}"
                    for section in recipe
                    for key in {**recipe[section], **new[section]}
                    if recipe[section].get(key) != new[section].get(key)
                ]
                raise EffptError(
                    f"{out} holds runs of arm `{name}` with another recipe ({', '.join(changed)} changed); name "
                    "another `--out`, or rename the recipe file."
                )
        wanted["arms"] = before["arms"] | wanted["arms"]
        wanted |= {"seeds": before.get("seeds", seeds), "primary": before.get("primary", "held_out_loss")}
    elif out.is_dir() and any(out.iterdir()):
        raise EffptError(f"{out} is not empty and holds no comparison; name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(plan, wanted)
    return wanted


def _has_begun(out: Path, arm: str) -> bool:
    """Returns `True` if an arm has runs that are finished or have diverged, or checkpoints."""
    folders = (out / "runs" / file_name(arm)).glob("seed-*/budget-*")
    ends = (RECORD, DIVERGED)
    return any(
        any((folder / name).is_file() for name in ends) or checkpoints_in(folder)
        for folder in folders
        if folder.is_dir()
    )


def identity(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings that all runs of an arm share: those of its recipe but budget, seed and folder."""
    free = FREE | set(SET_BY_GRID)
    return {name: {k: v for k, v in values.items() if k not in free} for name, values in recipe.resolved().items()}


def divergence_text(record: Mapping[str, Any]) -> str:
    """Says where a run has diverged, by its record: the step, what was not finite, and the last finite loss."""
    loss, last = record.get("last_loss"), "no finite loss was logged"
    if loss is not None:
        shown = f"{loss:.4f}" if abs(loss) < 1000 else f"{loss:.3g}"
        last = f"the last finite training loss is {shown} at step {record['last_loss_step']}"
    return f"{record['what']} not finite from step {record['step']} on; {last}"
