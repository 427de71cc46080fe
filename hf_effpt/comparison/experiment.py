"""`compare`: trains several recipes on one budget and reports which of them pays, on this data and this machine."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import write_json
from hf_effpt.core.registry import build_methods, environment_of
from hf_effpt.core.targets import check_folder
from hf_effpt.evaluation.protocols import find_protocol, listed_seeds
from hf_effpt.evaluation.suite import BLIMP, check_tasks
from hf_effpt.evaluation.suite import LOSS as LOSS_TASK
from hf_effpt.preparation import prepare_data
from hf_effpt.pretraining import check_apart
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.checks import check_size

from .arm_losses import LOSS
from .arms import check_comparable, common_budget, load_arms, swept, with_free_methods
from .markdown import markdown
from .page import write_page
from .plots import require_plotting, write_plots
from .run_grid import claim, grid
from .run_launcher import Runner, gpus_of
from .statistics import LEAST_SEEDS
from .summary import report

logger = logging.getLogger(__name__)

DISCRIMINATORS = ("electra", "electra_15")


def compare(
    recipes: Sequence[str | Path | Mapping[str, Any]],
    out: str | Path,
    *,
    budget: str | None = None,
    seeds: int | Sequence[int] = 3,
    fractions: Sequence[float] = (0.5, 0.7, 1.0),
    overrides: Sequence[str] = (),
    sweep: Sequence[str] = (),
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

    Each run is fully decayed on its own budget, arms are paired by seed and take turns, and methods are charged for
    all they do. Shorter runs on shares of the budget show how soon an arm reaches the baseline's loss. Finished runs
    are kept: the same call continues an interrupted comparison, and may add recipes, seeds or tasks.

    Args:
        recipes (`Sequence`): the arms, as [`Recipe`] takes them; the first is the baseline.
        out (`str` or `Path`): the folder of the runs and of `report.html`, `report.md`, `report.json` and pictures.
        budget (`str`, *optional*): the budget of each run, by default the one that all recipes name.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to 3): the number of seeds, from 0, or the seeds.
        fractions (`Sequence[float]`, *optional*, defaults to (0.5, 0.7, 1.0)): shares of the budget, each with its own
            runs.
        overrides (`Sequence[str]`, *optional*): command-line flags that change every recipe.
        sweep (`Sequence[str]`, *optional*): settings of which each recipe gets every value, one arm for each:
            `["training.learning_rate=3e-4,1e-3"]`. The first value of the first recipe is the baseline.
        tasks (`Sequence[str]`, *optional*): evaluation tasks for runs on the whole budget, as in [`evaluate`]. The
            fine-tuning seed is that of the run.
        data, protocol, pairs_per_paradigm (*optional*): as in [`evaluate`].
        primary (`str`, *optional*): the measure of the verdicts, to be chosen before any run: a score of the tasks,
            such as `cola/mcc@default`, or `average` for that of the fine-tuned scores. By default the held-out loss,
            which cannot compare different objectives.
        gpus (`str`, *optional*): GPUs such as `0,1`, each of which takes one run at a time. By default one run at a
            time in all.
        free (`bool`, *optional*, defaults to `False`): if `True`, run arms with methods once more without charging
            the work of their methods besides training; on a budget in FLOPs, arms with row selection.
        different_data (`bool`, *optional*, defaults to `False`): if `True`, arms may differ in their data; there is
            no verdict on those that do.
        command (`str`, *optional*): the command line that the report names.

    Returns:
        The content of `report.json`.

    Raises:
        EffptError: for arms that cannot be compared, before anything is trained, or if the baseline never finished.
    """
    require_plotting()
    out, numbers = check_folder(out), listed_seeds(seeds)
    if len(numbers) < LEAST_SEEDS:
        logger.warning("a verdict takes %d pairs of seeds, and here are %d", LEAST_SEEDS, len(numbers))
    if wrong := [fraction for fraction in fractions if not 0 < fraction <= 1]:
        raise EffptError(f"A fraction is a share of the budget above 0 and at most 1, not {wrong[0]}.")
    arms = swept(load_arms(recipes, overrides), sweep)
    clock = common_budget(arms, budget)
    if free:
        arms = with_free_methods(arms, clock.unit)
    runs = grid(arms, clock, numbers, sorted({*fractions, 1.0}), out)
    firsts = {arm.name: next(run.recipe for run in runs if run.arm == arm.name) for arm in arms}
    check_comparable(arms, firsts, different_data)
    for recipe in firsts.values():
        check_apart(out, recipe)
    objectives = {name: recipe.model.exported for name, recipe in firsts.items()}
    check_heads(firsts, tasks)
    protocol = _common_protocol(protocol, firsts)
    measure = find_primary(primary, objectives, tasks, data, protocol, pairs_per_paradigm)
    options = {"data": data and str(data), "protocol": protocol, "pairs_per_paradigm": pairs_per_paradigm}
    environment = environment_of({name for recipe in firsts.values() for name in recipe.methods})
    runner = Runner({"tasks": list(tasks), **options} if tasks else {}, gpus_of(gpus), environment)
    _prepare(firsts)
    planned = claim(out, runs, clock, measure)
    known = {"asked": runner.evaluation_of, "primary": measure, "planned": planned, "command": command}
    try:
        failed = runner.make(runs)
    except KeyboardInterrupt:
        with suppress(EffptError):  # reports the finished runs, if the baseline is among them
            write_report(report(arms, runs, clock, **known), out)
        raise
    found = report(arms, runs, clock, failed=failed, **known)
    write_report(found, out)
    return found


def check_heads(recipes: Mapping[str, Recipe], tasks: Sequence[str]) -> None:
    """Raises an `EffptError` if an arm exports no head that a task needs; `recipes` are by arm name."""
    for name, recipe in recipes.items():
        if BLIMP in tasks and recipe.model.backbone == "modernbert" and recipe.model.exported in DISCRIMINATORS:
            raise EffptError(
                f"Arm `{name}` trains a discriminator of ModernBERT's shape, whose head has no stock class, so BLiMP "
                "cannot score it; leave `blimp` out of the tasks, and compare by fine-tuning."
            )


def find_primary(
    primary: str | None,
    objectives: Mapping[str, str],
    tasks: Sequence[str],
    data: str | Path | None,
    protocol: str,
    pairs_per_paradigm: int | None,
) -> str:
    """Checks the tasks and returns the full name of the primary measure.

    The arguments are those of [`compare`], and `objectives` by arm name. Raises an `EffptError` for invalid tasks or
    data, or a measure that the tasks do not give for every arm.
    """
    scores = check_tasks(tasks, data, protocol, pairs_per_paradigm)
    discriminators = [name for name, objective in objectives.items() if objective in DISCRIMINATORS]
    if LOSS_TASK in tasks and discriminators:
        raise EffptError(
            f"Arm `{discriminators[0]}` trains a discriminator, which has no masked-token loss; leave `loss` out of "
            "the tasks. Each run's own held-out loss is reported without it."
        )
    if primary in (None, LOSS):
        return LOSS
    wanted = f"average@{protocol}" if primary == "average" else primary
    if wanted not in scores:
        there = ", ".join(score for score in scores if score != LOSS) or "no scores"
        raise EffptError(
            f"The primary measure is {primary!r}, but the tasks ({', '.join(tasks) or 'none'}) give {there}; name one "
            f"of them, add the task to `--tasks`, or leave it out to judge by the held-out loss."
        )
    if wanted.startswith("blimp/"):
        for name, objective in objectives.items():
            own = "discriminator" if objective in DISCRIMINATORS else "pll_word_l2r"
            if not wanted.startswith(f"blimp/{own}"):
                raise EffptError(
                    f"The primary measure is {wanted!r}, but of arm `{name}` (`{objective}`) BLiMP measures `{own}`, "
                    "which is another score; name one that all arms have, such as that of a fine-tuning task."
                )
    return wanted


def _common_protocol(name: str, recipes: Mapping[str, Recipe]) -> str:
    """Name of the fine-tuning protocol for the sizes of all arms; raises an `EffptError` if theirs are different."""
    sizes = {arm: recipe.model.config_kwargs()["hidden_size"] for arm, recipe in recipes.items()}
    found = {find_protocol(name, size).name: arm for arm, size in sizes.items()}
    if len(found) > 1:
        each = ", ".join(f"`{own}` for arm `{arm}`" for own, arm in found.items())
        raise EffptError(f"The protocol `{name}` is {each}, whose scores do not compare; name one of them for all.")
    return next(iter(found))


def _prepare(recipes: Mapping[str, Recipe]) -> None:
    """Packs the text before the first run; raises an `EffptError` if it is invalid, too short, or none is held out."""
    for name, recipe in recipes.items():
        _, _, rows = prepare_data(recipe)  # from the cache if another arm has the same text
        if "validation" not in rows:
            raise EffptError(f"Arm `{name}` holds out no text to compare by; set `data.validation`.")
        try:
            check_size(rows["train"], recipe.training, build_methods(recipe.methods))
        except EffptError as error:
            raise EffptError(f"Arm `{name}`: {error}") from error


def write_report(found: dict[str, Any], out: Path) -> None:
    """Writes a report as JSON, pictures, Markdown and HTML."""
    write_json(out / "report.json", found)
    write_plots(found, out)
    (out / "report.md").write_text(markdown(found), encoding="utf-8")
    write_page(found, out / "report.html")
