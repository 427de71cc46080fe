"""The arms of a comparison: recipes that differ in what is compared, and in nothing else."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS
from hf_effpt.core.row_method import RowMethod
from hf_effpt.training.overrides import apply_overrides
from hf_effpt.training.recipe import Recipe
from hf_effpt.training.recipe_file import read_recipe_file

# Of the data, what arms may differ in: how tokens are masked in training, and how the rows are made.
FREE_DATA = {"mlm_probability", "whole_word", "num_proc", "cache_dir", "select"}
POINTS = 10  # evaluations a run
# What a comparison sets in each run, and how it is told.
OF_THE_GRID = {
    "budget": "give it by --budget",
    "seed": "give the number of seeds by --seeds",
    "output_dir": "give its folder by --out",
    "charge_methods": "--free shows arms whose methods are not charged",
    **dict.fromkeys(("eval_strategy", "eval_steps", "save_total_limit"), "leave it out"),
}
NOT_DECAYING = ("constant", "constant_with_warmup")


@dataclass(frozen=True)
class Arm:
    """One way to spend the budget.

    Args:
        name (`str`): how the report calls it.
        sections (`Mapping[str, Any]`): the plain content of its recipe; budget, seed and folder come from the grid.
        free (`bool`, *optional*, defaults to `False`): whether its clock does not pay for what its methods do besides
            training; shown beside the others, never judged.
    """

    name: str
    sections: Mapping[str, Any]
    free: bool = False

    def recipe(self, budget: str, seed: int, output_dir: str) -> Recipe:
        """The recipe of one run.

        Raises:
            EffptError: for settings that cannot be, with the name of the arm.
        """
        sections = copy.deepcopy(dict(self.sections))
        training = dict(sections.get("training") or {})
        training |= {"budget": budget, "seed": seed, "output_dir": output_dir, "save_total_limit": 1}
        training |= {"eval_strategy": "steps", "eval_steps": 1 / POINTS}  # off the clock: for the curves of the report
        training |= {"charge_methods": not self.free}
        try:
            return Recipe.load(sections | {"training": training})
        except EffptError as error:
            raise EffptError(f"Arm `{self.name}` at {budget}: {error}") from error


def load_arms(sources: Sequence[str | Path | Mapping[str, Any]], overrides: Sequence[str] = ()) -> list[Arm]:
    """Reads the recipes of the arms, which are called by their file names.

    Args:
        sources (`Sequence`): recipe files, names of built-in recipes, or `{"name": …}` with a recipe's sections.
        overrides (`Sequence[str]`, *optional*): command-line flags that change each of them.

    Raises:
        EffptError: if a recipe cannot be read, or two have the same name.
    """
    for flag in overrides:
        name = flag.partition("=")[0].removeprefix("--training.")
        if flag.startswith("--training.") and name in OF_THE_GRID:
            raise EffptError(f"`{flag}`: a comparison sets `training.{name}` itself; {OF_THE_GRID[name]}.")
    arms = []
    for number, source in enumerate(sources, start=1):
        if isinstance(source, Mapping):
            content = {key: value for key, value in source.items() if key != "name"}
            name = str(source.get("name", f"arm {number}"))
        else:
            content, name = read_recipe_file(source), Path(source).stem
        if not isinstance(content, Mapping):
            raise EffptError(
                f"Recipe {source} holds {content!r}, but must have sections such as `data` and `training`."
            )
        arms.append(Arm(name, apply_overrides(content, overrides)))
    for folder, number in Counter(file_name(arm.name) for arm in arms).items():
        if number > 1:
            alike = [arm.name for arm in arms if file_name(arm.name) == folder]
            raise EffptError(f"Two arms are called {' and '.join(map(repr, alike))}: rename one of the recipe files.")
    return arms


def file_name(name: str) -> str:
    """A name as a folder has it on any system, so that two arms never share one.

    Raises:
        EffptError: if nothing is left of it.
    """
    folder = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).lower()
    if not folder.strip(".-"):
        raise EffptError(f"An arm cannot be called {name!r}: its name needs a letter or a digit.")
    return folder


def common_budget(arms: Sequence[Arm], budget: str | None) -> Clock:
    """The budget that every arm gets: `budget`, or the one that all recipes name.

    Raises:
        EffptError: if none is given and the recipes have none, or several.
    """
    if budget is not None:
        return Clock.parse(budget)
    named = {arm.name: (arm.sections.get("training") or {}).get("budget") for arm in arms}
    clocks = [Clock.parse(each) for each in named.values() if each is not None]
    if len(clocks) < len(arms) or any(clock != clocks[0] for clock in clocks):
        raise EffptError(f"Every arm must have the same budget, but they have {named}; give one by `--budget`.")
    return clocks[0]


def with_free_methods(arms: Sequence[Arm], unit: str) -> list[Arm]:
    """The arms, and each with methods once more, its clock not paying for what they do besides training.

    A clock of FLOPs pays for scoring rows, so there the arms whose methods pick rows are run once more.

    Args:
        arms (`Sequence[Arm]`): the arms.
        unit (`str`): of the clock.

    Raises:
        EffptError: if the clock would pay nothing for the methods anyway.
    """
    if unit in ("steps", "tokens"):
        raise EffptError(
            f"`--free` shows what arms would come to if their methods cost nothing, but the budget is {unit}, which "
            "what they cost does not move; give one in seconds, in reference time (10min_rst), or, where methods pick "
            "rows, in FLOPs."
        )
    freed = [arm for arm in arms if (_picks_rows(arm) if unit == "flops" else arm.sections.get("methods"))]
    if unit == "flops" and not freed:
        raise EffptError(
            "`--free` shows what arms would come to if their methods cost nothing, but the budget is flops, which "
            "only those that pick rows move, and no arm has one; give one in seconds, or reference time (10min_rst)."
        )
    return [
        each
        for arm in arms
        for each in ([arm, Arm(f"{arm.name} (methods free)", arm.sections, free=True)] if arm in freed else [arm])
    ]


def _picks_rows(arm: Arm) -> bool:
    methods = (METHODS.get(name) for name in arm.sections.get("methods") or {})
    return any(method is not None and issubclass(method, RowMethod) for method in methods)


def check_comparable(arms: Sequence[Arm], recipes: Mapping[str, Recipe], different_data: bool) -> None:
    """Checks that arms learn from the same rows and that each learning rate is fully decayed.

    Args:
        arms (`Sequence[Arm]`): the baseline first.
        recipes (`Mapping[str, Recipe]`): of each arm, by name.
        different_data (`bool`): whether the arms are meant to differ in data.

    Raises:
        EffptError: if they do not.
    """
    for name, recipe in recipes.items():
        if recipe.training.data_seed is not None:
            raise EffptError(
                f"Arm `{name}` has `training.data_seed: {recipe.training.data_seed}`, so that its data would not "
                "follow the seed that pairs it with the other arms; leave it out."
            )
        schedule = str(getattr(recipe.training.lr_scheduler_type, "value", recipe.training.lr_scheduler_type))
        if schedule in NOT_DECAYING:
            raise EffptError(
                f"Arm `{name}` has `training.lr_scheduler_type: {schedule}`, which never decays; only fully decayed "
                "runs are compared: use linear or cosine."
            )
    if different_data:
        return
    first = recipes[arms[0].name].resolved()["data"]
    for arm in arms[1:]:
        other = recipes[arm.name].resolved()["data"]
        for key in sorted({*first, *other} - FREE_DATA):
            if first.get(key) != other.get(key):
                raise EffptError(
                    f"Arms `{arms[0].name}` and `{arm.name}` differ in `data.{key}`: {first.get(key)!r} and "
                    f"{other.get(key)!r}. Losses on other data or by another tokenizer cannot be compared; make them "
                    "equal, or pass `--different_data` if that is what you mean to look at (without a verdict)."
                )
