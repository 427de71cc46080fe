"""Control of an arm with row selection: the same recipe with rows selected at random.

Skipping rows saves time by itself. So a gain is credited to a strategy only where random rows do not have it too.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from hf_effpt.core.method import Method
from hf_effpt.core.registry import METHODS, build_methods
from hf_effpt.core.row_method import RowMethod, row_methods

from .arm_losses import LOSS, Entries, final_losses
from .caveats import no_verdict
from .statistics import Difference

SCHEDULE = ("start", "end", "interrupt")  # settings that the control shares besides those that make it random

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Control:
    """Second baseline of an arm with row selection: the name of an `arm`, or the `reason` why there is none."""

    arm: str | None = None
    reason: str | None = None


def find_control(
    name: str, found: Mapping[str, Entries], recipes: Mapping[str, Recipe], free: Collection[str], unit: str
) -> Control | None:
    """Finds the control of the arm `name`; `None` if it needs none. Only a free arm is the control of a free arm.

    `found` and `recipes` are runs and recipe by arm, `free` the arms whose clock is not charged for their methods, and
    `unit` is that of the clock.
    """
    methods = row_methods(build_methods(recipes[name].get("methods")))
    wanted = {method.name: method.control for method in methods if method.control is not None}
    if not wanted:
        return None
    faults = {
        other: _fault(name, other, found, unit)
        for other, recipe in recipes.items()
        if (other in free) == (name in free) and _is_control(recipes[name], recipe, wanted)
    }
    if not faults:
        return Control(reason=f"no arm picks rows at random: add one with `{_as_recipe(wanted)}`")
    sound = next((other for other, fault in faults.items() if fault is None), None)
    return Control(sound) if sound else Control(reason=next(iter(faults.values())))


def _resolved(method: Method, key: str) -> Any:
    """Returns a setting of a method, with its default filled in where the recipe leaves it open."""
    given = getattr(method, key, None)
    filled_in = method.resolved if isinstance(method, RowMethod) else None
    return getattr(filled_in, key, None) if given is None else given


def _as_recipe(wanted: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes the methods of a control as a recipe has them, without settings that are the default."""
    shown = {}
    for name, settings in wanted.items():
        random = METHODS[name](**{key: value for key, value in settings.items() if key not in SCHEDULE})
        shown[name] = {
            key: value for key, value in settings.items() if key not in SCHEDULE or _resolved(random, key) != value
        }
    return yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, width=1000).strip()[1:-1]


def _is_control(recipe: Recipe, other: Recipe, wanted: Mapping[str, Mapping[str, Any]]) -> bool:
    """Returns `True` if `other` differs from `recipe` only in the methods of `wanted`, which have these settings."""

    def others(of: Recipe) -> dict[str, Any]:
        return {**of, "methods": {k: v for k, v in (of.get("methods") or {}).items() if k not in wanted}}

    methods = {method.name: method for method in build_methods(other.get("methods"))}
    return others(recipe) == others(other) and all(
        name in methods and all(_resolved(methods[name], key) == value for key, value in settings.items())
        for name, settings in wanted.items()
    )


def _fault(name: str, control: str, found: Mapping[str, Entries], unit: str) -> str | None:
    """Returns the reason why a control arm cannot be compared with; `None` if it can."""
    lacking = sorted(set(final_losses(found[name])) - set(final_losses(found[control])))
    if lacking or not final_losses(found[control]):
        seeds = f"seed {', '.join(map(str, lacking))}" if lacking else "no seed"
        return f"of `{control}`, which picks rows at random, {seeds} has {'not ' if lacking else ''}finished"
    fault = no_verdict(found[name], found[control], unit, f"`{control}`")
    return fault and f"`{control}`, which picks rows at random, cannot be compared with: {fault}"


def control_sentence(control: Control | None, gap: Difference | None, primary: str) -> str:
    """Returns the sentence on its control, and the difference to it, that is appended to the verdict on an arm."""
    if control is not None and control.reason is not None:
        return f" No speed-up is given, since {control.reason}."
    return difference_sentence(f"Against random rows (`{control.arm}`)", gap, primary) if control else ""


def difference_sentence(begin: str, gap: Difference | None, primary: str) -> str:
    """Returns a sentence on a difference, to append to a verdict; empty if there is none."""
    if gap is None:
        return ""
    change = f"{abs(gap.mean):.4f} {'nats ' if primary == LOSS else ''}{'lower' if gap.mean < 0 else 'higher'}"
    return (
        f" {begin} its {'loss' if primary == LOSS else primary} is {change} (95 % interval {gap.low:+.4f} to "
        f"{gap.high:+.4f}, p = {gap.p:.3g}, not corrected, {gap.n} paired seeds)."
    )
