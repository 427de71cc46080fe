"""Valid values of settings and what gives them an effect, declared at dataclass fields and checked in one place.

`p: Annotated[float, In("[0, 1)")] | None = None` is left out or a number from 0 to below 1.
`harden: Annotated[Share, When(routing="bernoulli")] = 0.5` has an effect only with that `routing`.
"""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

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


@dataclass(frozen=True)
class Like:
    """Texts that match a regular expression, in `words`; all other values that are given match, too."""

    pattern: str
    words: str

    def __contains__(self, value: Any) -> bool:
        return value is not None and (not isinstance(value, str) or bool(re.fullmatch(self.pattern, value)))

    def __str__(self) -> str:
        return self.words


class When:
    """What gives a setting its effect: values of other settings, for `Annotated[float, When(routing="bernoulli")]`.

    A value is needed as it is, or is one of a tuple, or in an interval ([`In`]) or pattern ([`Like`]). All settings
    named must have the value; of several `When`s of a field one is enough.
    """

    def __init__(self, **needed: Any) -> None:
        self.needed = needed

    def unmet(self, values: Mapping[str, Any]) -> list[str]:
        """Names of the settings that have another value than is needed."""
        return [key for key, needed in self.needed.items() if not _matches(values[key], needed)]

    def __str__(self) -> str:
        return " and ".join(f"`{key.rstrip('_')}` {_needed(needed)}" for key, needed in self.needed.items())


class Beside:
    """Methods one of which a setting needs for its effect, for `Annotated[str, Beside("stacking")]`.

    Any other method will do that changes the architecture (`Method.order`).
    """

    def __init__(self, *methods: str) -> None:
        self.methods = methods

    def __str__(self) -> str:
        *others, last = [f"`{name}`" for name in self.methods]
        return f"{', '.join(others)} or {last}" if others else last


GIVEN = Like(".*", "given")
FINITE = In("(-inf, inf)")
Share = Annotated[float, In("(0, 1]")]
Fraction = Annotated[float, In("[0, 1)")]
Inside = Annotated[float, In("(0, 1)")]
Positive = Annotated[float, In("(0, inf)")]
NotNegative = Annotated[float, In("[0, inf)")]
Count = Annotated[int, In("[1, inf)")]
CountOrZero = Annotated[int, In("[0, inf)")]


def check_settings(settings: Any) -> None:
    """Raises an `EffptError` for the first field of a dataclass with a `name` whose value is wrong or does nothing.

    A value has to fit its type: `float`, `int`, `str` (or a path), `bool`, `Literal`, `list`, or a union of them. A
    bool is no number; NaN and infinity are in no interval.
    """
    options = _options(type(settings))
    for field in fields(settings):
        value, kinds = getattr(settings, field.name), options[field.name]
        if not any(_fits(value, *kind) for kind in kinds):
            needed = " or ".join(_words(*kind) for kind in kinds if kind[0] is not NoneType)
            why = "".join(f": {interval.why}" for _, interval in kinds if interval.why)
            why += ", which has more than 64 bits" if _long(value) else ""
            raise EffptError(f"`{settings.name}.{field.name}` must be {needed}, not {value!r}{why}.")
    check_effects(settings, settings.name)


def check_effects(settings: Any, name: str) -> None:
    """Raises an `EffptError` for the first field of a dataclass, the section `name`, that does nothing as set."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for key, needed in idle_settings(type(settings), values).items():
        here = {other: values[other] for when in needed for other in when.unmet(values) if other != key}
        raise idle_error(name, key, values[key], " or with ".join(map(str, needed)), here)


def idle_error(name: str, key: str, value: Any, needed: str, here: Mapping[str, Any] | None = None) -> EffptError:
    """The error for a setting that does nothing: `needed` gives it an effect, and `here` are the values instead."""
    found = {other.rstrip("_"): "left out" if own is None else repr(own) for other, own in (here or {}).items()}
    instead = f", and here {', '.join(f'`{other}` is {own}' for other, own in found.items())}" if found else ""
    return EffptError(
        f"`{name}.{key}` is {value!r}, which has an effect only with {needed}{instead}; leave `{key}` out."
    )


def idle_settings(kind: type, values: Mapping[str, Any]) -> dict[str, list[When]]:
    """Settings among `values` of the dataclass `kind` that do nothing, each with what would give it an effect.

    Those left at their default are none of them.
    """
    every = {field.name: default_of(field) for field in fields(kind)} | dict(values)
    conditions = _given(kind, values, When)
    return {key: whens for key, whens in conditions.items() if all(when.unmet(every) for when in whens)}


def lonely_settings(kind: type, values: Mapping[str, Any], others: Collection[str]) -> dict[str, list[Beside]]:
    """Settings among `values` of the method `kind` that do nothing beside these `others`, and what they need."""
    found = _given(kind, values, Beside)
    return {key: needed for key, needed in found.items() if not {*needed[0].methods} & {*others}}


def _given(kind: type, values: Mapping[str, Any], mark: type) -> dict[str, list[Any]]:
    """Marks of the settings among `values` that are not left at their default."""
    defaults, marks = {field.name: default_of(field) for field in fields(kind)}, _marks(kind, mark)
    return {key: marks[key] for key in values if key in marks and values[key] != defaults[key]}


def default_of(field: dataclasses.Field) -> Any:
    """The default of a dataclass field, made anew if it has a factory."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def plain(value: Any) -> Any:
    """The value of an enumeration's member; anything else as it is."""
    return value.value if isinstance(value, Enum) else value


def written(value: Any) -> str:
    """A value as people write it in a recipe; of a number with many digits the first six."""
    value = plain(value)
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {written(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return f"{value:.6g}" if isinstance(value, float) and len(repr(value)) > 10 else str(value)


@cache
def _marks(cls: type, mark: type) -> dict[str, list[Any]]:
    """The conditions of this kind of fields that have some."""
    found = {}
    for key, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated and (marks := [item for item in get_args(hint) if isinstance(item, mark)]):
            found[key] = marks
    return found


@cache
def _options(cls: type) -> dict[str, list[tuple[Any, In]]]:
    """Types that each field may have, with the intervals of numbers."""
    return {key: _kinds(hint) for key, hint in get_type_hints(cls, include_extras=True).items()}


def _kinds(hint: Any, interval: In = FINITE) -> list[tuple[Any, In]]:
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return _kinds(inner, next((item for item in more if isinstance(item, In)), interval))
    if get_origin(hint) in (Union, UnionType):
        return [kind for option in get_args(hint) for kind in _kinds(option)]
    return [(hint, interval)]


def _matches(value: Any, needed: Any) -> bool:
    if isinstance(needed, tuple):
        return any(_matches(value, one) for one in needed)
    if isinstance(needed, In):
        return isinstance(value, int | float) and value in needed
    return value in needed if isinstance(needed, Like) else value == needed


def _needed(needed: Any) -> str:
    """Words for the values that a setting must have."""
    if isinstance(needed, tuple):
        *others, last = map(_needed, needed)
        return f"{', '.join(others)} or {last}" if others else last
    if isinstance(needed, In | Like):
        return str(needed)
    return "left out" if needed is None else f"`{needed}`" if isinstance(needed, str) else str(needed).lower()


def _long(value: Any) -> bool:
    return isinstance(value, int) and abs(value) >= 2**63


def _fits(value: Any, kind: Any, interval: In) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        # PyTorch takes no whole number of more than 64 bits, not even where it means a float.
        return isinstance(value, int | kind) and not isinstance(value, bool) and not _long(value) and value in interval
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
