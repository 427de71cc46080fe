"""`plan` proposes a recipe for a text and a budget, from seconds of training; `dry_run` forecasts a recipe."""

import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_effpt.core.clock import JOULES_A_KWH, Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gpus import names_of_gpus
from hf_effpt.core.registry import build_methods
from hf_effpt.core.targets import check_file
from hf_effpt.preparation import prepare_data
from hf_effpt.pretraining import claim
from hf_effpt.recipe.file import BUILT_IN, read_recipe_file
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.checks import check_size

from .forecasting import forecast, watts_of
from .measurement import Measurement
from .measuring import TooLarge, measure
from .proposing import LEAST_ROWS, METHODS, REASONS, Candidate, candidate_for, proposed
from .report import report, with_text
from .text_of_pilot import text_of_pilot
from .writing import recipe_text, write_recipe

logger = logging.getLogger(__name__)

PILOTS, PILOT_SECONDS, DRY_RUN_SECONDS = 3, 10.0, 20.0
MICRO_ROWS = {"cpu": 32, "cuda": 128}  # at most, that are computed at once
LEAST_AT_ONCE = 4
RECIPE_ENDINGS = (".yaml", ".yml")
Measure = Callable[[Mapping[str, Any], float, str | None], Measurement]


def plan(
    source: str,
    out: str | Path,
    *,
    hours: float | None = None,
    kwh: float | None = None,
    device: str | None = None,
    command: str = "effpt plan",
    measure: Measure = measure,
) -> str:
    """Proposes a recipe for a text and a budget, after about a minute of measuring, and writes it with its forecast.

    Args:
        source (`str`): a text, as `data.dataset` takes it, or a recipe, whose section `data` is kept.
        out (`str` or `Path`): new file for the recipe.
        hours (`float`, *optional*): time that the run may take.
        kwh (`float`, *optional*): energy that the run may take; with both, the one that is spent first.
        device (`str`, *optional*): `cpu`, `cuda`, or `cuda:1`; by default a GPU if there is one.
        command (`str`, *optional*): the command line that the recipe names.
        measure (*optional*): what measures a recipe, as [`measure`] does.

    Returns:
        The forecast, as text.

    Raises:
        EffptError: for a budget, text, device or file that cannot be used, before anything is measured.
    """
    out, kind, data = check_file(out, RECIPE_ENDINGS), _kind(device), _data_of(source)
    _check(out, hours, kwh)
    least = Candidate("tiny", LEAST_ROWS[kind])
    Recipe.load(_sections(least, data, kind, MICRO_ROWS[kind], {}))  # refuses settings of the user's that are wrong
    with tempfile.TemporaryDirectory() as folder:
        text, share = text_of_pilot(data, Path(folder))
        candidate, micro_rows, measured, limits = _settle(text, hours, kwh, kind, device, measure)
    measured = with_text(measured, share)
    seconds = _seconds(measured, hours, kwh)
    budget = f"{hours:g}h" if hours is not None and seconds == hours * 3600 else f"{seconds:.0f}s"
    sections = _sections(candidate, data, kind, micro_rows, {"output_dir": out.stem, "budget": budget})
    recipe = Recipe.load(sections)
    told = "\n".join([report(recipe, measured, Clock.parse(budget)), *(f"- {limit}" for limit in limits.values())])
    head = [f"Made by `{command}`.", METHODS, "What it is expected to do:", *told.splitlines()]
    reasons = REASONS | limits
    own = {name: reason for name, reason in reasons.items() if name.removeprefix("data.") not in data}
    write_recipe(out, recipe_text(sections, own, head))
    return told


def dry_run(recipe: Recipe, measure: Measure = measure) -> str:
    """Checks a recipe and its text, and forecasts its run from seconds of training; only the cache is written to.

    Raises:
        EffptError: for settings, text or an output folder with which the run would be refused.
    """
    claim(Path(recipe.training.output_dir), recipe, False)
    _, _, rows = prepare_data(recipe)
    check_size(rows["train"], recipe.training, build_methods(recipe.methods))
    measured = measure(recipe.resolved(), DRY_RUN_SECONDS, None)
    clock = recipe.training.clock
    if clock is None:
        tokens = recipe.training.num_train_epochs * (measured.text_tokens or 0)
        clock = Clock("steps", max(1, math.ceil(tokens / measured.step_tokens)))
    return report(recipe, measured, clock)


def _check(out: Path, hours: float | None, kwh: float | None) -> None:
    if hours is None and kwh is None:
        raise EffptError("A plan needs a budget: give `--hours`, or `--kwh` for energy.")
    for flag, value in (("--hours", hours), ("--kwh", kwh)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise EffptError(f"`{flag}` is {value}, but must be above 0.")
    if out.exists():
        raise EffptError(f"{out} exists; name a new file for the recipe by `--out`.")


def _kind(device: str | None) -> str:
    kind, colon, number = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")
    if kind not in MICRO_ROWS or (colon and kind != "cuda"):
        raise EffptError(f"`--device` is {device!r}, but must be cpu, cuda, or one GPU such as cuda:1.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise EffptError(f"`--device` is {device!r}, but no GPU can be seen here; leave it out to plan for the CPU.")
    if colon:
        names_of_gpus([number])
    return kind


def _data_of(source: str) -> dict[str, Any]:
    """Section `data` of a recipe file or built-in recipe, or of a text."""
    if not source.endswith((".yaml", ".yml")) and not (BUILT_IN / f"{source}.yaml").is_file():
        return {"dataset": source}
    sections = read_recipe_file(source) or {}
    for name, values in (("", sections), *(sections.items() if isinstance(sections, Mapping) else ())):
        if not isinstance(values or {}, Mapping):
            what = f"in its section `{name}`" if name else "in the place of its sections"
            raise EffptError(f"The recipe {source} has {values!r} {what}; write a mapping there.")
    if (sections.get("model") or {}).get("from") is not None:
        raise EffptError(
            f"{source} goes on from a checkpoint, and plans are for new models; `effpt pretrain {source} --dry_run` "
            "forecasts it as it is."
        )
    return dict(sections.get("data") or {})


def _sections(
    candidate: Candidate, data: Mapping[str, Any], kind: str, micro_rows: int, training: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    sections = proposed(candidate, data, kind == "cuda", micro_rows)
    forced = {"use_cpu": True} if kind == "cpu" and torch.cuda.is_available() else {}
    return {**sections, "training": {**training, **sections["training"], **forced}}


def _settle(
    text: Mapping[str, Any], hours: float | None, kwh: float | None, kind: str, device: str | None, measure: Measure
) -> tuple[Candidate, int, Measurement, dict[str, str]]:
    """Measures the smallest size, then the one that the budget allows by that, until they agree.

    Attempts that do not fit into memory do not count. Returns also what memory has limited, by setting of the recipe.
    """
    candidate, micro_rows = Candidate("tiny", LEAST_ROWS[kind]), MICRO_ROWS[kind]
    settled: tuple[Candidate, int, Measurement] | None = None
    pilots, flops, below = 0, 0.0, None  # FLOPs of the budget; the smallest size known to be too large
    while pilots < PILOTS:
        rows = min(micro_rows, candidate.rows)
        logger.info("measuring: size %s, %d rows a step, %d at once", candidate.size, candidate.rows, rows)
        try:
            measured = measure(_sections(candidate, text, kind, micro_rows, {}), PILOT_SECONDS, device)
        except TooLarge as error:
            logger.info("that is too much for the memory of this device")
            if (micro_rows := rows // 2) >= LEAST_AT_ONCE:
                continue
            if settled is None:
                raise TooLarge(
                    f"This device has too little memory for {rows} rows of a model of size {candidate.size}."
                ) from error
            below, micro_rows = candidate.size, MICRO_ROWS[kind]
            of, _, measured = settled
        else:
            pilots, of = pilots + 1, candidate
            settled = candidate, micro_rows, measured
            flops = forecast(measured, Clock("seconds", _seconds(measured, hours, kwh)), None).flops
        wanted = candidate_for(flops, measured.flops_per_token, of.size, LEAST_ROWS[kind], below)
        if wanted == of:
            break
        candidate = wanted
    assert settled is not None  # the first attempts have ended in a measurement, or in the error above
    limits = {}
    if below is not None:
        limits["model.size"] = f"{below} and larger sizes do not fit into the memory of this device"
    if settled[1] < min(MICRO_ROWS[kind], settled[0].rows):
        limits["training.per_device_train_batch_size"] = "more rows at once do not fit into the memory of this device"
    return *settled, limits


def _seconds(measured: Measurement, hours: float | None, kwh: float | None) -> float:
    limits = [] if hours is None else [hours * 3600]
    if kwh is not None:
        limits.append(kwh * JOULES_A_KWH / watts_of(measured))
    return min(limits)
