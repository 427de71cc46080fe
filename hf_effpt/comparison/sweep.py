"""`budget_sweep`: which size of a model to train on a budget (Li et al., 2020), each size fully decayed on its own."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.training.overrides import apply_overrides
from hf_effpt.training.recipe import Recipe
from hf_effpt.training.recipe_file import read_recipe_file
from hf_effpt.training.schedule import clock_schedule
from hf_effpt.training.settings import SIZES

from .arms import Arm
from .compare import compare
from .grid import RECORD
from .statistics import interval

logger = logging.getLogger(__name__)

SHAPE = ("size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
HEAD_SIZE = 64  # of a shape that is only given as layers and width


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
    """Trains models of several sizes, each on the whole budget, and says which has the lowest held-out loss.

    Each size takes as many steps as it has time for, and its learning rate is decayed to the end in just these. The
    runs are those of [`compare`], whose report is in the same folder; finished ones are kept.

    Args:
        recipe (`str`, `Path` or `Mapping`): as [`Recipe`] takes it; its objective is masked language modelling.
        sizes (`Sequence`): names such as `"mini"`, shapes such as `"6x128"` (layers and width, heads of 64), or
            settings of the model that differ from the recipe's, `{"name": …, "num_hidden_layers": 6}`.
        out (`str` or `Path`): the folder of the runs, of `sweep.json` and `sweep.md`.
        budget (`str`, *optional*): what each run may spend; by default the recipe's.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to 1): how many, from 0, or which.
        overrides (`Sequence[str]`, *optional*): command-line flags that change the recipe.
        tolerance (`float`, *optional*, defaults to 0.05): share of the budget by which a run may overspend: at most
            its last step.
        gpus (`str`, *optional*): `0,1`: one run at a time on each of these.
        command (`str`, *optional*): what is reported to have made the sweep.

    Returns:
        The content of `sweep.json`: `sizes`, from the lowest loss on, `best`, the name of the first, and `cost`, what
        the sweep itself has spent.

    Raises:
        EffptError: for fewer than two sizes, sizes with equal names, another objective, or a budget that says nothing
            of what a step costs, before anything is trained;
            afterwards if a run has not spent the budget, has spent more, or its learning rate is not at the end of its
            schedule, so that the sizes could not be compared.
    """
    content = recipe if isinstance(recipe, Mapping) else read_recipe_file(recipe)
    sections = apply_overrides(content, overrides)
    arms = [_arm(sections, size) for size in sizes]
    if len(arms) < 2:
        raise EffptError(f"`sizes` is {list(sizes)!r}, but a sweep takes at least two, such as ['2x128', '6x128'].")
    objective = (sections.get("model") or {}).get("objective", "mlm")
    if objective != "mlm":
        raise EffptError(
            f"The objective is `{objective}`, whose loss depends on a generator that has a size of its own; sweep "
            "with `mlm`, or compare scores with `compare`."
        )
    text = budget or str((sections.get("training") or {}).get("budget") or "")
    if text and (unit := Clock.parse(text).unit) in ("steps", "tokens"):
        raise EffptError(
            f"The budget {text} is {unit}, which a large model has as many of as a small one; sizes are compared by "
            "what they cost: give time, reference time (10min_rst), flops or energy."
        )
    found = compare(arms, out, budget=budget, seeds=seeds, fractions=[1.0], gpus=gpus, command=command)
    clock = Clock(found["clock"]["unit"], found["clock"]["budget"])
    rows = []
    for arm, given in zip(found["arms"], arms, strict=True):
        floor = end_of_schedule(Arm(arm["name"], _without_name(given)).recipe(clock.share(1.0), 0, str(out)))
        for run in arm["runs"]:
            check_run(arm["name"], run, clock, floor, tolerance)
        rows.append(_row(arm))
    rows.sort(key=lambda row: row["held_out_loss"]["mean"])
    entries = [run["clock"] for arm in found["arms"] for run in arm["runs"]]
    cost = {name: _sum([entry.get(name) for entry in entries]) for name in ("seconds", "tokens", "flops", "joules")}
    swept = {
        "command": command,
        "clock": found["clock"],
        "seeds": found["seeds"],
        "best": rows[0]["name"],
        "sizes": rows,
        "cost": cost,
        "environment": found["environment"],
    }
    write_json(Path(out) / "sweep.json", swept)
    (Path(out) / "sweep.md").write_text(table(swept), encoding="utf-8")
    logger.info("%s", table(swept))
    return swept


def _arm(sections: Mapping[str, Any], size: str | Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of one size."""
    whole = dict(sections.get("model") or {})
    if isinstance(size, Mapping):
        shape = _without_name(size)
        if "size" not in shape:  # it changes the recipe's shape, and does not replace it
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
    """The learning rate that the recipe's schedule ends at: 0, or what a schedule with a least rate has."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=recipe.training.learning_rate)
    steps = 1_000_000
    return float(clock_schedule(recipe.training, optimizer, lambda: 1.0, steps).get_last_lr()[0])


def check_run(name: str, run: Mapping[str, Any], clock: Clock, floor: float, tolerance: float) -> None:
    """Checks that a run can stand beside others: it has finished, decayed to the end, and spent the budget.

    Args:
        name (`str`): of its size.
        run (`Mapping[str, Any]`): an entry of the report of a comparison.
        clock ([`Clock`]): of the budget.
        floor (`float`): the learning rate at the end of the schedule.
        tolerance (`float`): share of the budget by which it may overspend.

    Raises:
        EffptError: if it cannot.
    """
    if run["state"] != "finished":
        raise EffptError(
            f"The run of {name} with seed {run['seed']} is {run['state']} ({run['note']}); mend that, and start the "
            "sweep again: finished runs are kept."
        )
    rate = run["final_learning_rate"]
    if rate is None or abs(rate - floor) > 1e-6 * run["peak_learning_rate"]:
        raise EffptError(
            f"The learning rate of {name} with seed {run['seed']} ended at {rate}, not at {floor}, the end of its "
            "schedule: its loss is that of a run stopped on the way. Train it anew in another `out`."
        )
    share = run["clock"][clock.unit] / clock.budget
    if not 1.0 - 1e-9 <= share <= 1.0 + tolerance:
        raise EffptError(
            f"{name} with seed {run['seed']} spent {share:.3f} of the budget, and sizes are compared at equal "
            f"budgets; give a longer one, so that a step is less than {tolerance:.0%} of it, or raise `tolerance`."
        )


def _row(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What the sweep says of a size: means over its runs."""
    records = [read_json(Path(run["folder"]) / RECORD) for run in arm["runs"]]
    loss = interval([run["held_out_loss"] for run in arm["runs"]])
    assert loss is not None
    steps = [run["clock"]["steps"] for run in arm["runs"]]
    speeds = [run["clock"]["tokens"] / run["clock"]["seconds"] for run in arm["runs"] if run["clock"]["seconds"]]
    return {
        "name": arm["name"],
        "parameters": records[0]["model"]["parameters"],
        "tokens_per_second": sum(speeds) / len(speeds) if speeds else None,
        "steps": sum(steps) / len(steps),
        "tokens": arm["summary"]["tokens"],
        "seconds": arm["summary"]["seconds"],
        "held_out_loss": asdict(loss),
        "final_learning_rate": max(run["final_learning_rate"] for run in arm["runs"]),
        "folders": [run["folder"] for run in arm["runs"]],
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def table(swept: Mapping[str, Any]) -> str:
    """The sweep as a Markdown table, best size first."""
    lines = ["| size | parameters | tokens/s | steps | held-out loss |", "|---|---:|---:|---:|---|"]
    for row in swept["sizes"]:
        loss, speed = row["held_out_loss"], row["tokens_per_second"]
        spread = "" if loss["low"] is None else f" ({loss['low']:.4f} to {loss['high']:.4f})"
        told = "" if speed is None else f"{speed:,.0f}"
        lines.append(
            f"| {row['name']} | {row['parameters']:,} | {told} | {row['steps']:,.0f} | {loss['mean']:.4f}{spread} |"
        )
    return "\n".join([*lines, ""])
