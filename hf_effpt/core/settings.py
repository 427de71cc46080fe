"""Valid values of settings, declared as types of dataclass fields and checked in one place.

`p: Annotated[float, In("[0, 1)")] | None = None` is left out or a number from 0 to below 1.
"""

import os
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from .errors import EffptError


@dataclass(frozen=True)
class In:
    """An interval of numbers, for `Annotated[float, In(...)]` or `Annotated[int, In(...)]`.

    It is written with both ends, each excluded by a round bracket: `"[0, 1)"`, `"(0, inf)"`. Its reason, `why`, ends
    the error message.
    """

    interval: str
    why: str = ""

    def __contains__(self, value: float) -> bool:
        low, high = map(float, self.interval[1:-1].split(", "))
        ends = ([low] if self.interval[0] == "[" else []) + ([high] if self.interval[-1] == "]" else [])
        return low < value < high or value in ends  # `False` for NaN

    def __str__(self) -> str:
        low, high = self.interval[1:-1].split(", ")
        if high == "inf":
            return f"{'at least' if self.interval[0] == '[' else 'above'} {low}"
        return f"below {high}" if low == "-inf" else f"in {self.interval}"


FINITE = In("(-inf, inf)")
Share = Annotated[float, In("(0, 1]")]
Fraction = Annotated[float, In("[0, 1)")]
Inside = Annotated[float, In("(0, 1)")]
Positive = Annotated[float, In("(0, inf)")]
NotNegative = Annotated[float, In("[0, inf)")]
Count = Annotated[int, In("[1, inf)")]
CountOrZero = Annotated[int, In("[0, inf)")]


def check_settings(settings: Any) -> None:
    """Raises an `EffptError` for the first field of a dataclass with a `name` whose value does not fit its type.

    Known types are `float`, `int`, `str` (or a path), `bool`, `Literal`, `list`, and unions of them. A bool is no
    number; NaN and infinity are in no interval.
    """
    options = _options(type(settings))
    for field in fields(settings):
        value, kinds = getattr(settings, field.name), options[field.name]
        if not any(_fits(value, *kind) for kind in kinds):
            needed = " or ".join(_words(*kind) for kind in kinds if kind[0] is not NoneType)
            why = "".join(f": {interval.why}" for _, interval in kinds if interval.why)
            raise EffptError(f"`{settings.name}.{field.name}` must be {needed}, not {value!r}{why}.")


@cache
def _options(cls: type) -> dict[str, list[tuple[Any, In]]]:
    """Types that each field may have, with the intervals of numbers."""
    found = {}
    for key, hint in get_type_hints(cls, include_extras=True).items():
        kinds = (hint,) if get_origin(hint) in (None, Annotated, Literal, list) else get_args(hint)
        found[key] = [get_args(kind) if get_origin(kind) is Annotated else (kind, FINITE) for kind in kinds]
    return found


def _fits(value: Any, kind: Any, interval: In) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool) and value in interval
    return isinstance(value, str | os.PathLike if kind is str else get_origin(kind) or kind)


def _words(kind: Any, interval: In) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is int:
        return "a whole number" if interval is FINITE else f"a whole number of {interval}"
    if kind is float:
        unbounded = "inf" in interval.interval
        return "a finite number" if interval is FINITE else f"{interval}{' and finite' if unbounded else ''}"
    return {str: "a text", bool: "true or false"}.get(kind, "a list")
