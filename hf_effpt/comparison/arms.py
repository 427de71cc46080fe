"""Arms of a comparison: recipes that differ only in the settings that are compared."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS
from hf_effpt.core.row_method import RowMethod
from hf_effpt.core.settings import plain
from hf_effpt.recipe.file import read_recipe_file
from hf_effpt.recipe.overrides import apply_overrides
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.arguments import NEVER_DECAYING

# Data settings in which arms may differ: masking in training, and how rows are computed and cached.
FREE_DATA = {"mlm_probability", "whole_word", "num_proc", "cache_dir", "select"}
POINTS = 10  # evaluations per run
LONGEST_NAME = 120  # bytes of an arm's folder; file systems take 255
# Training settings that a comparison sets in each run, and where the user gives them instead.
SET_BY_GRID = {
    "budget": "give it by --budget",
    "seed": "give the number of seeds by --seeds",
    "output_dir": "give its folder by --out",
    "charge_methods": "--free shows arms whose methods are not charged",
    "branches": "its budgets are those of --fractions",
    **dict.fromkeys(("eval_strategy", "eval_steps", "save_total_limit"), "leave it out"),
}


@dataclass(frozen=True)
class Arm:
    """One recipe of a comparison.

    `sections` are the content of its recipe; budget, seed and folder come from the grid. If it is `free`, its clock is
    not charged for the work of its methods besides training; it is reported without a verdict.
    """

    name: str
    sections: Mapping[str, Any]
    free: bool = False

    def recipe(self, budget: str, seed: int, output_dir: str) -> Recipe:
        """Builds the recipe of one run; raises an `EffptError` for invalid settings, with the name of the arm."""
        sections = copy.deepcopy(dict(self.sections))
        training = dict(sections.get("training") or {})
        training |= {"budget": budget, "seed": seed, "output_dir": output_dir, "save_total_limit": 1, "branches": None}
        # Evaluations are not charged; the curves of the report need them.
        training |= {"charge_methods": not self.free, "eval_strategy": "steps", "eval_steps": 1 / POINTS}
        try:
            return Recipe.load(sections | {"training": training})
        except EffptError as error:
            raise EffptError(f"Arm `{self.name}` at {budget}: {error}") from error


def load_arms(sources: Sequence[str | Path | Mapping[str, Any]], overrides: Sequence[str] = ()) -> list[Arm]:
    """Reads the recipes of the arms. An arm is named after its recipe file.

    `sources` are recipe files, names of built-in recipes, or `{"name": …}` with a recipe's sections; `overrides` are
    command-line flags that change every recipe. Raises an `EffptError` if a recipe cannot be read, or two have the
    same name.
    """
    for flag in overrides:
        _check_own(flag)
    arms = []
    for number, source in enumerate(sources, start=1):
        if isinstance(source, Mapping):
            content = dict(source)
            name = str(content.pop("name", f"arm {number}"))
        else:
            content, name = read_recipe_file(source), Path(source).stem
        if not isinstance(content, Mapping):
            raise EffptError(f"Recipe {source} holds {content!r}, but needs sections such as `data` and `training`.")
        arms.append(Arm(name, apply_overrides(content, overrides)))
    return with_own_folders(arms, "rename one of the recipe files")


def with_own_folders(arms: list[Arm], fix: str) -> list[Arm]:
    """Returns the arms; raises an `EffptError`, which ends with `fix`, if two would share a folder."""
    names: dict[str, str] = {}
    for arm in arms:
        folder = file_name(arm.name)
        if folder in names:
            raise EffptError(
                f"Two arms are called {names[folder]!r} and {arm.name!r}, whose runs would share a folder: {fix}."
            )
        names[folder] = arm.name
    return arms


def swept(arms: Sequence[Arm], sweep: Sequence[str]) -> list[Arm]:
    """Returns each arm once for each value of a setting, `training.learning_rate=3e-4,1e-3`; several multiply.

    A value may be a list or a mapping: `training.average=null,{kind: lawa, k: 5}`. Raises an `EffptError` for a text
    that names no setting, fewer than two values, one value or one setting twice, or names that share a folder.
    """
    found, keys = list(arms), [text.removeprefix("--").partition("=")[0] for text in sweep]
    keys = [key.strip().replace("-", "_") for key in keys]
    for key, text in zip(keys, sweep, strict=True):
        values = _values_in(text.partition("=")[2])
        if "." not in key or len(values) < 2 or len({*map(_plain, values)}) < len(values):
            raise EffptError(
                f"`sweep` is {text!r}, but must be a setting and two values or more, each once, such as "
                "`training.learning_rate=3e-4,1e-3` or `training.average=null,{kind: lawa, k: 5}`."
            )
        if keys.count(key) > 1:
            raise EffptError(f"`sweep` names `{key}` twice; give all its values at once.")
        _check_own(f"--{key}")
        short = key.rpartition(".")[2]
        if sum(other.rpartition(".")[2] == short for other in keys) > 1:
            short = key
        found = [
            replace(
                arm,
                name=f"{arm.name} {short}={value}",
                sections=apply_overrides(arm.sections, [f"--{key}", value]),
            )
            for arm in found
            for value in values
        ]
    return with_own_folders(found, "compare one of the two values alone")


def _values_in(listed: str) -> list[str]:
    """Values of a list, at commas that are in no brackets: `1,[2, 3],{a: 4}` has three."""
    values, depth = [""], 0
    for letter in listed:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values if value.strip()]


def _plain(value: str) -> str:
    """A value as it compares with others: `1e-3` is `0.001`, and white space in brackets does not count."""
    try:
        return str(float(value))
    except ValueError:
        return "".join(value.split()) if value[0] in "[{" else value


def _check_own(flag: str) -> None:
    """Raises an `EffptError` for a flag of a setting that a comparison sets in each run."""
    name = flag.partition("=")[0].removeprefix("--training.").replace("-", "_")
    if flag.startswith("--training.") and name in SET_BY_GRID:
        raise EffptError(f"`{flag}`: a comparison sets `training.{name}` itself; {SET_BY_GRID[name]}.")


def file_name(name: str) -> str:
    """Converts an arm's name to a folder name for any system; raises an `EffptError` without a letter or digit."""
    folder = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).lower()
    if not folder.strip(".-"):
        raise EffptError(f"An arm cannot be called {name!r}: its name needs a letter or a digit.")
    if len(folder.encode()) <= LONGEST_NAME:
        return folder
    return f"{folder[: LONGEST_NAME // 4]}-{sha256(name.encode()).hexdigest()[:16]}"


def common_budget(arms: Sequence[Arm], budget: str | None) -> Clock:
    """Returns the budget of every arm: `budget`, or the one that all recipes name, else raises an `EffptError`."""
    if budget is not None:
        return Clock.parse(budget)
    named = {arm.name: (arm.sections.get("training") or {}).get("budget") for arm in arms}
    clocks = [Clock.parse(each) for each in named.values() if each is not None]
    if len(clocks) < len(arms) or any(clock != clocks[0] for clock in clocks):
        raise EffptError(f"Every arm must have the same budget, but they have {named}; give one by `--budget`.")
    return clocks[0]


def with_free_methods(arms: Sequence[Arm], unit: str) -> list[Arm]:
    """Returns the arms, with a second, free copy of each arm whose methods are charged to the clock.

    If the `unit` of the clock is FLOPs, these are the arms with row selection, which is charged for scoring rows. If
    it is time or energy, they are all arms with methods. Raises an `EffptError` if the clock charges none of them.
    """
    fault, found = None, []
    for arm in arms:
        methods = list(arm.sections.get("methods") or {})
        if unit == "flops":
            methods = [name for name in methods if issubclass(METHODS.get(name, object), RowMethod)]
        found += [arm, *([Arm(f"{arm.name} (methods free)", arm.sections, free=True)] if methods else [])]
    if unit in ("steps", "tokens"):
        fault = "does not pay for methods; give one in seconds or reference time, or in FLOPs if methods pick rows"
    elif unit == "flops" and len(found) == len(arms):
        fault = "pays only for methods that pick rows, and no arm has one; give one in seconds or reference time"
    if fault:
        raise EffptError(f"`--free` shows arms as if methods cost nothing, but the budget is {unit}, which {fault}.")
    return with_own_folders(found, "rename one of the recipe files")


def check_comparable(arms: Sequence[Arm], recipes: Mapping[str, Recipe], different_data: bool) -> None:
    """Raises an `EffptError` for an arm that cannot be compared with the first, the baseline.

    All arms train on the same rows, unless `different_data`, and decay their learning rates to the end.
    """
    for name, recipe in recipes.items():
        if recipe.training.data_seed is not None:
            raise EffptError(
                f"Arm `{name}` has `training.data_seed: {recipe.training.data_seed}`, so that its data would not "
                "follow the seed that pairs it with the other arms; leave it out."
            )
        schedule = plain(recipe.training.lr_scheduler_type)
        if schedule in NEVER_DECAYING:
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
                    f"{other.get(key)!r}. Losses on other data or with another tokenizer cannot be compared; make "
                    "them equal, or pass `--different_data` to compare different data (without a verdict)."
                )
