"""The grid of a comparison: which runs there are, in which order they take turns, and which are done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.pretraining import FREE
from hf_effpt.training.checkpoints import checkpoints_in
from hf_effpt.training.recipe import Recipe

from .arms import OF_THE_GRID, Arm, file_name

RECORD, SCORES, LOG = "run.json", "evaluation.json", "log.txt"


@dataclass(frozen=True)
class Run:
    """One cell of the grid.

    Args:
        arm (`str`): the name of its arm.
        seed (`int`): of weights, order and masks: runs of equal seed are a pair.
        fraction (`float`): the share of the whole budget that it has to itself, fully decayed.
        recipe ([`Recipe`]): what it does; its output folder is the run's.
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
        """What the run has printed; beside its folder, which belongs to the run."""
        return self.folder.with_suffix(f"{self.folder.suffix}.log")

    def record(self) -> dict[str, Any] | None:
        """The content of `run.json`; `None` while the run is not finished."""
        return _json(self.folder / RECORD)

    def scores(self) -> dict[str, Any] | None:
        """The content of `evaluation.json`; `None` while there is none."""
        return _json(self.folder / SCORES)

    def has_diverged(self) -> bool:
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
    """All runs, in the order in which they are to be made.

    The arms take turns at equal seed and budget, beginning with another one at each seed, so that no arm always has
    the machine at its best; a seed is complete before the next begins.

    Raises:
        EffptError: for settings that cannot be at one of the budgets, such as a warm-up longer than it.
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
    """Makes sure that the folder is free or holds this comparison, which may have got more arms, seeds or tasks.

    Returns:
        The plan; its `seeds`, their number, and `primary`, the measure of its verdicts, are those it first had.

    Raises:
        EffptError: if it holds another comparison, or something else.
    """
    plan = out / "plan.json"
    seeds = len({run.seed for run in runs})
    wanted = {"budget": clock.share(1.0), "seeds": seeds, "primary": primary}
    wanted["arms"] = {run.arm: identity(run.recipe) for run in runs}
    if plan.is_file():
        before = read_json(plan)
        if before["budget"] != wanted["budget"]:
            raise EffptError(
                f"{out} holds a comparison at {before['budget']}, not {wanted['budget']}; name another `--out`."
            )
        for name, recipe in before["arms"].items():
            if name in wanted["arms"] and recipe != wanted["arms"][name] and _has_begun(out, name):
                changed = [
                    f"{section}.{key}"
                    for section in recipe
                    for key in {**recipe[section], **wanted["arms"][name][section]}
                    if recipe[section].get(key) != wanted["arms"][name][section].get(key)
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
    """Whether there are runs, or parts of them, that were made by an arm's recipe."""
    folders = (out / "runs" / file_name(arm)).glob("seed-*/budget-*")
    return any((folder / RECORD).is_file() or checkpoints_in(folder) for folder in folders if folder.is_dir())


def identity(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe makes its runs what they are, whatever their budget, seed and folder."""
    resolved = recipe.resolved()
    free = FREE | set(OF_THE_GRID)
    return {section: {k: v for k, v in values.items() if k not in free} for section, values in resolved.items()}
