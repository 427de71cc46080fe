"""The clock: budget, spending and progress of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeVar

from .errors import EffptError
from .shares import part_of

Value = TypeVar("Value")

JOULES_A_KWH = 3.6e6

UNITS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("step", "steps"), ("steps", 1.0)),
    **dict.fromkeys(("token", "tokens"), ("tokens", 1.0)),
    **dict.fromkeys(("flop", "flops"), ("flops", 1.0)),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ("seconds", 1.0)),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), ("seconds", 60.0)),
    **dict.fromkeys(("h", "hour", "hours"), ("seconds", 3600.0)),
    **dict.fromkeys(("d", "day", "days"), ("seconds", 86400.0)),
    **dict.fromkeys(("j", "joule", "joules"), ("joules", 1.0)),
    "kj": ("joules", 1e3),
    "mj": ("joules", 1e6),
    "wh": ("joules", 3600.0),
    "kwh": ("joules", JOULES_A_KWH),
    **dict.fromkeys(("reference_seconds", "s_rst"), ("reference_seconds", 1.0)),
    "min_rst": ("reference_seconds", 60.0),
    "h_rst": ("reference_seconds", 3600.0),
}
_BUDGET = re.compile(r"\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*([a-z][a-z_]*)\s*", re.IGNORECASE)


@dataclass
class Clock:
    """Budget and spending of a run; schedules of learning rate and methods are functions of its `fraction`.

    Args:
        unit (`str`): unit of the budget: `steps`, `tokens`, `flops`, `seconds`, `joules`, or `reference_seconds`, the
            time that the same operations take on a reference system (Kaddour et al., 2023, section 2).
        budget (`float`): budget in that unit.
        steps, tokens, flops, seconds, joules, reference_seconds: amounts spent. The last two are `None` if they are
            not measured; on a CPU without an energy counter `joules` is an estimate.

    Raises:
        EffptError: for an unknown unit or a budget that is not positive and finite.
    """

    unit: str
    budget: float
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    joules: float | None = None
    reference_seconds: float | None = None

    def __post_init__(self) -> None:
        units = dict.fromkeys(unit for unit, _ in UNITS.values())
        if self.unit not in units:
            raise EffptError(f"Unknown clock unit {self.unit!r}; use one of {', '.join(units)}.")
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise EffptError(f"A budget must be positive and finite, not {self.budget} {self.unit}.")
        if self.unit == "steps" and self.budget != int(self.budget):
            raise EffptError(f"A budget in steps must be a whole number, not {self.budget}.")
        self.end = 1.0  # fraction at which the run ends; less in a branch

    @classmethod
    def parse(cls, budget: str) -> Clock:
        """Reads a budget: `40steps`, `1e9tokens`, `3e15flops`, `90s`, `10min`, `2h`, `50kJ`, `10min_rst`."""
        match = _BUDGET.fullmatch(str(budget))
        if match is None or match[2].lower() not in UNITS:
            raise EffptError(
                f"Cannot read the budget {budget!r}; write a number and a unit, such as "
                "`40steps`, `1e9tokens`, `3e15flops`, `90s`, `10min`, `2h`, `50kJ`, or `10min_rst` for reference time."
            )
        unit, factor = UNITS[match[2].lower()]
        return cls(unit, float(match[1].replace("_", "")) * factor)

    def share(self, fraction: float) -> str:
        """Budget of this fraction of the whole, in the format of `parse`."""
        in_steps = self.unit == "steps"
        return f"{part_of(fraction, self.budget, least=1) if in_steps else self.budget * fraction!r}{self.unit}"

    @property
    def spent(self) -> float:
        return getattr(self, self.unit) or 0.0

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, from 0 to 1."""
        return min(1.0, self.spent / self.budget)

    @property
    def finished(self) -> bool:
        return self.spent >= self.budget * self.end

    def tick(
        self,
        *,
        steps: int = 1,
        tokens: int = 0,
        flops: float = 0.0,
        seconds: float = 0.0,
        reference_seconds: float | None = None,
    ) -> None:
        """Adds the cost of an optimizer step."""
        self.steps += steps
        self.tokens += tokens
        self.flops += flops
        self.seconds += seconds
        if reference_seconds is not None:
            self.reference_seconds = (self.reference_seconds or 0.0) + reference_seconds

    def restore(self, totals: dict[str, Any]) -> None:
        """Continues from the totals of an earlier part of the run; the budget does not change."""
        for name in ("steps", "tokens", "flops", "seconds", "joules", "reference_seconds"):
            setattr(self, name, totals.get(name))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def scheduled(value: Any, key: str) -> dict[float, Any]:
    """Values of a setting by the fraction of the clock, in [0, 1), from which each holds, from 0 on and rising.

    A plain value holds throughout; a mapping, `{0: 128, 0.9: 1024}`, is a schedule.

    Raises:
        EffptError: naming the setting `key`, unless fractions are numbers below 1 in rising order, the first 0.
    """
    if not isinstance(value, Mapping):
        return {0.0: value}
    try:
        fractions = [float(fraction) for fraction in value]
    except (TypeError, ValueError):
        fractions = []
    if not fractions or fractions[0] != 0 or not all(a < b for a, b in pairwise([*fractions, 1.0])):
        raise EffptError(
            f"`{key}` is {dict(value)!r}, but a schedule has values by rising fractions of the clock, from 0 to below "
            "1, such as {0: 128, 0.9: 1024}."
        )
    return dict(zip(fractions, value.values(), strict=True))


def value_at(schedule: Mapping[float, Value], fraction: float) -> Value:
    """Value of a schedule, as [`scheduled`] returns it, at a fraction of the clock."""
    return schedule[max(since for since in schedule if since <= fraction)]
