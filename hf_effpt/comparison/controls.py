"""The control of a method that picks rows: the same recipe with rows picked at random.

To skip rows saves time by itself, so a gain is only put down to the picking where rows at random do not have it too.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from hf_effpt.core.method import Method
from hf_effpt.core.registry import METHODS, build_methods
from hf_effpt.core.row_method import row_methods

from .caveats import no_verdict
from .losses import Entries, final_losses
from .primary import LOSS
from .statistics import Difference

# What the control must share besides: when rows are picked. The other settings say how, which chance does not ask for.
WHEN = ("start", "end", "interrupt")
AGAINST = "against random rows"

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Control:
    """What an arm has to be compared with besides the baseline.

    Args:
        arm (`str`, *optional*): the name of the control arm, if there is one that can be compared with.
        reason (`str`, *optional*): why there is none.
    """

    arm: str | None = None
    reason: str | None = None


def find_control(
    name: str, found: Mapping[str, Entries], recipes: Mapping[str, Recipe], free: Collection[str], unit: str
) -> Control | None:
    """The control of an arm; `None` for one that needs none.

    Args:
        name (`str`): of the arm.
        found (`Mapping[str, Sequence]`): the runs of each arm.
        recipes (`Mapping[str, Mapping]`): of each arm.
        free (`Collection[str]`): the arms whose clock does not pay for their methods; an arm's control is like it.
        unit (`str`): of the clock.
    """
    wanted = {
        method.name: method.control
        for method in row_methods(build_methods(recipes[name].get("methods")))
        if method.control is not None
    }
    if not wanted:
        return None
    alike = [
        other
        for other in recipes
        if (other in free) == (name in free) and _is_control(recipes[name], recipes[other], wanted)
    ]
    if not alike:
        return Control(reason=f"no arm picks rows at random: add one with `{_as_recipe(wanted)}`")
    faults = {other: _fault(name, other, found, unit) for other in alike}
    sound = next((other for other, fault in faults.items() if fault is None), None)
    return Control(reason=faults[alike[0]]) if sound is None else Control(sound)


def _settled(method: Method, key: str) -> Any:
    """A setting of a method, or what the method has settled in its `resolved` where the recipe leaves it open."""
    given = getattr(method, key, None)
    return getattr(getattr(method, "resolved", None), key, None) if given is None else given


def _as_recipe(wanted: Mapping[str, Mapping[str, Any]]) -> str:
    """The methods of a control as a recipe has them, without what is settled so anyway."""
    shown = {}
    for name, settings in wanted.items():
        bare = METHODS[name](**{key: value for key, value in settings.items() if key not in WHEN})
        shown[name] = {
            key: value for key, value in settings.items() if key not in WHEN or _settled(bare, key) != value
        }
    return yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, width=1000).strip()[1:-1]


def _is_control(recipe: Recipe, other: Recipe, wanted: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether `other` is `recipe` but for the methods of `wanted`, and these are set as they have to be."""
    if _without(recipe, wanted) != _without(other, wanted):
        return False
    methods = {method.name: method for method in build_methods(other.get("methods"))}
    return all(
        name in methods and all(_settled(methods[name], key) == value for key, value in settings.items())
        for name, settings in wanted.items()
    )


def _without(recipe: Recipe, names: Collection[str]) -> dict[str, Any]:
    methods = recipe.get("methods") or {}
    return {**recipe, "methods": {name: settings for name, settings in methods.items() if name not in names}}


def _fault(name: str, control: str, found: Mapping[str, Entries], unit: str) -> str | None:
    """Why a control arm cannot be compared with."""
    lacking = sorted(set(final_losses(found[name])) - set(final_losses(found[control])))
    if lacking or not final_losses(found[control]):
        seeds = f"seed {', '.join(map(str, lacking))}" if lacking else "no seed"
        return f"of `{control}`, which picks rows at random, {seeds} has {'not ' if lacking else ''}finished"
    fault = no_verdict(found[name], found[control], unit, f"`{control}`")
    return fault and f"`{control}`, which picks rows at random, cannot be compared with: {fault}"


def said_of_control(control: Control | None, gap: Difference | None, primary: str) -> str:
    """What the verdict on an arm adds about its control.

    Args:
        control ([`Control`], *optional*): of the arm.
        gap ([`Difference`], *optional*): to the control, in the primary measure.
        primary (`str`): that measure.
    """
    if control is None:
        return ""
    if control.reason is not None:
        return f" No speed-up is given, since {control.reason}."
    if gap is None:
        return ""
    return f" Against random rows (`{control.arm}`) {_said(gap, primary)}"


def said_of_free(gap: Difference | None, primary: str) -> str:
    """What the verdict on an arm adds whose clock does not pay for its methods: its difference to the baseline."""
    return "" if gap is None else f" So {_said(gap, primary)}"


def _said(gap: Difference, primary: str) -> str:
    change = f"{abs(gap.mean):.4f} {'nats ' if primary == LOSS else ''}{'lower' if gap.mean < 0 else 'higher'}"
    return (
        f"its {'loss' if primary == LOSS else primary} is {change} (95 % interval {gap.low:+.4f} to {gap.high:+.4f}, "
        f"p = {gap.p:.3g}, not corrected, {gap.n} paired seeds)."
    )
