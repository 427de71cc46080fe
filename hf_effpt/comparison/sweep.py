"""`budget_sweep`: finds the model size with the lowest loss on a budget (Li et al., 2020)."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_effpt.core.clock import Clock, scheduled
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.recipe.file import read_recipe_file
from hf_effpt.recipe.overrides import apply_overrides
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.recipe.settings import SIZES
from hf_effpt.training.optimization import clock_schedule

from .arms import Arm
from .experiment import compare
from .run_grid import RECORD

logger = logging.getLogger(__name__)

SHAPE = ("size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
HEAD_SIZE = 64  # of a shape that is given as layers and width alone


def budget_sweep(
    recipe: str | Path | Mapping[str, Any],
    sizes: Sequence[str | Mapping[str, Any]],
    out: str | Path,
    *,
    budget: str | None = None,
    seeds: int | Sequence[int] = 1,
    overrides: Sequence[str] = (),
    tolerance: float = 0.05,
    gpus: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains models of several sizes, each on the whole budget, and reports their held-out losses.

    The learning rate of each size is fully decayed within the steps that the size has time for. The runs are those of
    [`compare`], whose report is in the same folder. Finished runs are kept.

    Args:
        recipe (`str`, `Path` or `Mapping`): as [`Recipe`] takes it; its objective is masked language modelling.
        sizes (`Sequence`): names such as `"mini"`, shapes such as `"6x128"` (layers and width, heads of 64), or
            settings of the model that differ from the recipe's, `{"name": …, "num_hidden_layers": 6}`.
        out (`str` or `Path`): the folder of the runs, of `sweep.json` and `sweep.md`.
        budget (`str`, *optional*): the budget of each run, by default that of the recipe.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to 1): the number of seeds, from 0, or the seeds.
        overrides (`Sequence[str]`, *optional*): command-line flags that change the recipe.
        tolerance (`float`, *optional*, defaults to 0.05): share of the budget by which a run may exceed it with its
            last step.
        gpus (`str`, *optional*): GPUs such as `0,1`, each of which takes one run at a time.
        command (`str`, *optional*): the command line that the report names.

    Returns:
        The content of `sweep.json`: `sizes`, lowest loss first, `best`, the name of the first, `cost`, the total cost
        of all runs, and `command`, `clock`, `seeds` and `environment`.

    Raises:
        EffptError: before training, for fewer than two sizes, sizes with equal names, another objective, or a budget
            in steps or tokens; afterwards, for runs that [`check_run`] refuses.
    """
    content = recipe if isinstance(recipe, Mapping) else read_recipe_file(recipe)
    sections = apply_overrides(content, overrides)
    arms = [_arm(sections, size) for size in sizes]
    if len(arms) < 2:
        raise EffptError(f"`sizes` is {list(sizes)!r}, but a sweep takes at least two, such as ['2x128', '6x128'].")
    asked = (sections.get("model") or {}).get("objective", "mlm")
    objective = [*scheduled(asked, "model.objective").values()][-1]
    if objective != "mlm":
        raise EffptError(
            f"The objective is `{objective}`, whose loss depends on a generator that has a size of its own; sweep "
            "with `mlm`, or compare scores with `compare`."
        )
    text = str(budget or (sections.get("training") or {}).get("budget") or "")
    if text and (unit := Clock.parse(text).unit) in ("steps", "tokens"):
        raise EffptError(
            f"The budget {text} is {unit}, of which a large model gets as many as a small one; sizes are compared at "
            "equal cost: give time, reference time (10min_rst), flops or energy."
        )
    found = compare(arms, out, budget=budget, seeds=seeds, fractions=[1.0], gpus=gpus, command=command)
    clock = Clock(found["clock"]["unit"], found["clock"]["budget"])
    for arm, given in zip(found["arms"], arms, strict=True):
        floor = end_of_schedule(Arm(arm["name"], _without_name(given)).recipe(clock.share(1.0), 0, str(out)))
        for run in arm["runs"]:
            check_run(arm["name"], run, clock, floor, tolerance)
    rows = sorted(map(_row, found["arms"]), key=lambda row: row["held_out_loss"]["mean"])
    entries = [run["clock"] for arm in found["arms"] for run in arm["runs"]]
    totals = {name: [entry.get(name) for entry in entries] for name in ("seconds", "tokens", "flops", "joules")}
    swept = {
        "command": command,
        "clock": found["clock"],
        "seeds": found["seeds"],
        "best": rows[0]["name"],
        "sizes": rows,
        "cost": {name: None if None in spent else sum(spent) for name, spent in totals.items()},
        "environment": found["environment"],
    }
    write_json(Path(out) / "sweep.json", swept)
    (Path(out) / "sweep.md").write_text(table(swept), encoding="utf-8")
    logger.info("%s", table(swept))
    return swept


def _arm(sections: Mapping[str, Any], size: str | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe of one size with the name of its arm."""
    whole = dict(sections.get("model") or {})
    if isinstance(size, Mapping):
        shape = _without_name(size)
        if "size" not in shape:  # it changes the recipe's shape instead of replacing it
            shape = {key: whole[key] for key in SHAPE if key in whole} | shape
        name = str(size.get("name") or " ".join(f"{key}={value}" for key, value in shape.items()))
    elif match := re.fullmatch(r"(\d+)x(\d+)", size):
        layers, width = int(match[1]), int(match[2])
        name, shape = size, {"num_hidden_layers": layers, "hidden_size": width}
        shape["num_attention_heads"] = max(1, width // HEAD_SIZE)
    elif size in SIZES:
        name, shape = size, {"size": size}
    else:
        raise EffptError(
            f"There is no size {size!r}; name one of {', '.join(SIZES)}, or a shape as layers and width: '6x128'."
        )
    others = {key: value for key, value in whole.items() if key not in SHAPE}
    return {**sections, "name": name, "model": {**others, **shape}}


def _without_name(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "name"}


def end_of_schedule(recipe: Recipe) -> float:
    """Returns the learning rate at the end of the recipe's schedule: 0, or the minimum of schedules that have one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=recipe.training.learning_rate)
    return float(clock_schedule(recipe.training, optimizer, lambda: 1.0, 1_000_000).get_last_lr()[0])


def check_run(name: str, run: Mapping[str, Any], clock: Clock, floor: float, tolerance: float) -> None:
    """Raises an `EffptError` unless the run of the size `name` has finished, is fully decayed, and spent the budget.

    Its learning rate has to end at `floor`. It may exceed the budget by the share `tolerance`.
    """
    if run["state"] != "finished":
        raise EffptError(
            f"The run of {name} with seed {run['seed']} is {run['state']} ({run['note']}); fix that, and start the "
            "sweep again: finished runs are kept."
        )
    rate = run["final_learning_rate"]
    if rate is None or abs(rate - floor) > 1e-6 * run["peak_learning_rate"]:
        raise EffptError(
            f"The learning rate of {name} with seed {run['seed']} ended at {rate}, not at {floor}, the end of its "
            "schedule: its loss is that of a run stopped early. Train it again in another `out`."
        )
    share = run["clock"][clock.unit] / clock.budget
    if not 1.0 - 1e-9 <= share <= 1.0 + tolerance:
        raise EffptError(
            f"{name} with seed {run['seed']} spent {share:.3f} of the budget, and sizes are compared at equal "
            f"budgets; give a longer one, so that a step is less than {tolerance:.0%} of it, or raise `tolerance`."
        )


def _row(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of a size: means over its runs."""
    clocks = [run["clock"] for run in arm["runs"]]
    speeds = [clock["tokens"] / clock["seconds"] for clock in clocks if clock["seconds"]]
    return {
        "name": arm["name"],
        "parameters": read_json(Path(arm["runs"][0]["folder"]) / RECORD)["model"]["parameters"],
        "tokens_per_second": sum(speeds) / len(speeds) if speeds else None,
        "steps": sum(clock["steps"] for clock in clocks) / len(clocks),
        "tokens": arm["summary"]["tokens"],
        "seconds": arm["summary"]["seconds"],
        "held_out_loss": arm["summary"]["final_loss"],
        "final_learning_rate": max(run["final_learning_rate"] for run in arm["runs"]),
        "folders": [run["folder"] for run in arm["runs"]],
    }


def table(swept: Mapping[str, Any]) -> str:
    """Returns the sweep as a Markdown table, best size first."""
    lines = ["| size | parameters | tokens/s | steps | held-out loss |", "|---|---:|---:|---:|---|"]
    for row in swept["sizes"]:
        loss, speed = row["held_out_loss"], row["tokens_per_second"]
        spread = "" if loss["low"] is None else f" ({loss['low']:.4f} to {loss['high']:.4f})"
        cells = (row["name"], f"{row['parameters']:,}", "" if speed is None else f"{speed:,.0f}")
        lines.append(f"| {' | '.join(cells)} | {row['steps']:,.0f} | {loss['mean']:.4f}{spread} |")
    return "\n".join([*lines, ""])
