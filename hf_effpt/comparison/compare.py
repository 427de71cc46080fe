"""`compare`: which recipe pays, at one budget, on this data and this machine."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import write_json
from hf_effpt.core.registry import build_methods
from hf_effpt.pretraining import prepare_data
from hf_effpt.training.checks import check_size
from hf_effpt.training.recipe import Recipe

from .arms import check_comparable, common_budget, load_arms, with_free_methods
from .grid import claim, grid
from .markdown import markdown
from .page import write_page
from .plots import require_plotting, write_plots
from .primary import find_primary
from .runner import Runner, gpus_of
from .statistics import LEAST_SEEDS
from .summary import report

logger = logging.getLogger(__name__)


def compare(
    recipes: Sequence[str | Path | Mapping[str, Any]],
    out: str | Path,
    *,
    budget: str | None = None,
    seeds: int | Sequence[int] = 3,
    fractions: Sequence[float] = (0.5, 0.7, 1.0),
    overrides: Sequence[str] = (),
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    protocol: str = "default",
    pairs_per_paradigm: int | None = None,
    primary: str | None = None,
    gpus: str | None = None,
    free: bool = False,
    different_data: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Trains every recipe with every seed on one budget and reports which is better, with intervals.

    Each run is fully decayed on its own budget; arms are paired by seed and take turns; methods pay for all they do.
    Shorter runs on shares of the budget say how soon an arm reaches the baseline's loss. Finished runs are kept:
    the same call goes on where an earlier one was stopped, and may add recipes, seeds or tasks.

    Args:
        recipes (`Sequence`): the arms, as [`Recipe`] takes them; the first is the baseline.
        out (`str` or `Path`): the folder of the runs and of `report.html`, `report.md`, `report.json` and plots.
        budget (`str`, *optional*): what each run may spend; by default the one that all recipes name.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to 3): how many, from 0, or which.
        fractions (`Sequence[float]`, *optional*, defaults to (0.5, 0.7, 1.0)): shares of the budget to run separately.
        overrides (`Sequence[str]`, *optional*): command-line flags that change every recipe.
        tasks (`Sequence[str]`, *optional*): what else is measured of runs on the whole budget, as [`evaluate`] takes
            it; a run's fine-tuning has the seed of the run.
        data, protocol, pairs_per_paradigm (*optional*): as in [`evaluate`].
        primary (`str`, *optional*): what verdicts are given on, to be chosen before any run: a score of the tasks,
            such as `cola/mcc@default`, or `average`, of the fine-tuned ones; by default the held-out loss, by which
            arms of other objectives than the baseline's cannot be judged.
        gpus (`str`, *optional*): `0,1`: one run at a time on each of these; by default one run at a time in all.
        free (`bool`, *optional*, defaults to `False`): run arms with methods once more, their clock not paying for
            what methods do besides training; on a budget in FLOPs, those whose methods pick rows.
        different_data (`bool`, *optional*, defaults to `False`): let arms differ in data, without a verdict on those.
        command (`str`, *optional*): what is reported to have made the comparison.

    Returns:
        The content of `report.json`.

    Raises:
        EffptError: for arms that cannot be compared, before anything is trained; or if the baseline never finished.
    """
    require_plotting()
    out, numbers = Path(out), _seeds(seeds)
    arms = load_arms(recipes, overrides)
    clock = common_budget(arms, budget)
    if free:
        arms = with_free_methods(arms, clock.unit)
    runs = grid(arms, clock, numbers, _fractions(fractions), out)
    firsts = {arm.name: next(run.recipe for run in runs if run.arm == arm.name) for arm in arms}
    check_comparable(arms, firsts, different_data)
    objectives = {name: recipe.model.objective for name, recipe in firsts.items()}
    measure = find_primary(primary, objectives, tasks, data, protocol, pairs_per_paradigm)
    runner = Runner(_evaluation(tasks, data, protocol, pairs_per_paradigm), gpus_of(gpus))
    _prepare(firsts)
    planned = claim(out, runs, clock, measure)
    asked = {"asked": runner.evaluation_of, "primary": measure, "planned": planned}
    try:
        failed = runner.make(runs)
    except KeyboardInterrupt:
        with suppress(EffptError):  # what there is so far; without a baseline there is nothing to say
            write_report(report(arms, runs, clock, command=command, **asked), out)
        raise
    found = report(arms, runs, clock, failed=failed, command=command, **asked)
    write_report(found, out)
    return found


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise EffptError(f"`seeds` is {seeds!r}, but must be a number from 1, or different seeds: [0, 1, 2].")
    if len(numbers) < LEAST_SEEDS:
        logger.warning("%d seeds give no verdict: it takes %d pairs", len(numbers), LEAST_SEEDS)
    return numbers


def _fractions(fractions: Sequence[float]) -> list[float]:
    if wrong := [fraction for fraction in fractions if not 0 < fraction <= 1]:
        raise EffptError(f"A fraction is a share of the budget above 0 and at most 1, not {wrong[0]}.")
    return sorted({*fractions, 1.0})


def _evaluation(
    tasks: Sequence[str], data: str | Path | None, protocol: str, pairs_per_paradigm: int | None
) -> dict[str, Any]:
    if not tasks:
        return {}
    where = None if data is None else str(data)
    return {"tasks": list(tasks), "data": where, "protocol": protocol, "pairs_per_paradigm": pairs_per_paradigm}


def _prepare(recipes: Mapping[str, Recipe]) -> None:
    """Packs the text once, before the first run, so that what is wrong with it is said at once.

    Raises:
        EffptError: for text that cannot be used, or of which nothing is held out.
    """
    for name, recipe in recipes.items():
        _, _, rows = prepare_data(recipe)  # from the cache, where another arm has the same
        if "validation" not in rows:
            raise EffptError(
                f"Arm `{name}` holds out no text, so there is nothing to compare by; set `data.validation`."
            )
        try:
            check_size(rows["train"], recipe.training, build_methods(recipe.methods))
        except EffptError as error:
            raise EffptError(f"Arm `{name}`: {error}") from error


def write_report(found: dict[str, Any], out: Path) -> None:
    """Writes a report in all its forms: JSON, pictures, Markdown, and a page."""
    write_json(out / "report.json", found)
    write_plots(found, out)
    (out / "report.md").write_text(markdown(found), encoding="utf-8")
    write_page(found, out / "report.html")
