"""Parses one section of a recipe: from plain values to the dataclass that checks them."""

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from hf_effpt.core.clock import scheduled
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

Section = TypeVar("Section")
Number = TypeVar("Number", int, float)
STAIRS = 10  # steps of a schedule that is given by its ends


def require(condition: bool, key: str, value: Any, needed: str) -> None:
    """Raises an `EffptError` that names the recipe key, its value and what is needed, unless `condition` holds."""
    if not condition:
        raise EffptError(f"`{key}` is {value!r}, but must be {needed}.")


def scheduled_numbers(value: Any, key: str, kind: type[Number], listed: bool = False) -> dict[float, Number]:
    """Numbers of the setting `key` by the fraction of the clock from which each holds, as [`scheduled`] reads them.

    If `listed`, it may be a list of the first number and the last, between which it changes in `STAIRS` equal steps.
    """
    if listed and isinstance(value, list):
        value = _stairs(value, key)
    found = scheduled(value, key)
    try:
        numbers = {fraction: kind(number) for fraction, number in found.items()}
    except (TypeError, ValueError):
        numbers = {}
    whole = all(not isinstance(found[one], bool) and float(found[one]) == number for one, number in numbers.items())
    require(bool(numbers) and whole, key, value, f"{'whole ' if kind is int else ''}numbers")
    return numbers


def _stairs(ends: list[Any], key: str) -> dict[float, float]:
    """The schedule of ten equal steps from the first of two numbers to the last."""
    try:
        first, last = map(float, ends)
    except (TypeError, ValueError):
        raise EffptError(
            f"`{key}` is {ends!r}, but a list has two numbers, the first and the last: [0.4, 0.15]."
        ) from None
    return {step / STAIRS: round(first + (last - first) * step / (STAIRS - 1), 6) for step in range(STAIRS)}


def key_of(field_name: str) -> str:
    """Key of a field in recipes: its name, without the underscore of one that would be a word of Python's."""
    return field_name.rstrip("_")


def parse_section(name: str, kind: type[Section], values: Any) -> Section:
    """Builds the dataclass `kind` from a section's plain values.

    Strings become the field's own type, so `5e-4`, which YAML 1.1 reads as a string, is a number where one is needed.

    Args:
        name (`str`): the section as the user knows it, `training` or `methods.layerdrop`.
        kind (`type`): the dataclass of the section.
        values (`Mapping[str, Any]`, *optional*): by key; a value of `None` stands for the default.

    Raises:
        EffptError: for an unknown or missing key, or a value that cannot be converted to its key's type.
    """
    given = _checked_keys(name, kind, values)
    hints = get_type_hints(kind)
    declared = {one.name: one for one in fields(kind)}  # pyright: ignore[reportArgumentType]
    argv: list[str] = []
    ready: dict[str, Any] = {}
    parsed: list[tuple[str, Any, Any]] = []
    for key, value in given.items():
        union = get_origin(hints[key]) in (Union, UnionType)
        types = [one for one in get_args(hints[key]) if one is not type(None)] if union else [hints[key]]
        lists = [one for one in types if get_origin(one) is list]
        if isinstance(value, Mapping):
            accepted = dict in [get_origin(one) or one for one in types]
            require(accepted, f"{name}.{key}", dict(value), "a value, not a mapping")
            ready[key] = dict(value)
            continue
        if isinstance(value, list | tuple):
            require(bool(lists), f"{name}.{key}", list(value), "a single value")
            if get_args(lists[0]) == (Any,):
                ready[key] = list(value)
                continue
            if not value or get_args(lists[0]) == (str,):  # the parser would take a word such as `--a` for a flag
                ready[key] = [str(item) for item in value]
                continue
            argv += [f"--{key}", *map(str, value)]
            hint = lists[0] | None
        else:
            argv.append(f"--{key}={value}")
            single = [one for one in types if one not in lists] or types
            # The parser takes one type, or a union with `str`.
            hint = hints[key] if str in types and not lists else single[0] | None
        parsed.append((key, hint, field(default=None, metadata=declared[key].metadata)))
    narrowed: Any = make_dataclass(kind.__name__, parsed)
    parser = HfArgumentParser(narrowed, allow_abbrev=False, add_help=False, exit_on_error=False)
    try:
        ready |= vars(parser.parse_args(argv))
    except argparse.ArgumentError as error:
        key = (error.argument_name or "").split("/")[0].lstrip("-")
        raise EffptError(f"`{name}.{key}` is {given[key]!r}: {error.message.rstrip('.')}.") from None
    try:
        return kind(**ready)
    except EffptError:
        raise
    except (ValueError, ImportError) as error:
        raise EffptError(f"Section `{name}` cannot be used: {error}") from error


def _checked_keys(name: str, kind: type, values: Any) -> dict[str, Any]:
    """Returns the values that are set, after checking that every key is known and none is missing."""
    values = values or {}
    require(isinstance(values, Mapping), name, values, f"a mapping, such as `{name}: {{key: value}}`")
    settable = [one for one in fields(kind) if one.init]  # pyright: ignore[reportArgumentType]
    valid = {key_of(one.name): one.name for one in settable}
    for key in values:
        if key not in valid:
            raise EffptError(f"Section `{name}` has no key `{key}`: {nearest(str(key), list(valid))}")
    given = {valid[key]: value for key, value in values.items() if value is not None}
    for one in settable:
        if one.default is MISSING and one.default_factory is MISSING and one.name not in given:
            raise EffptError(f"Section `{name}` needs `{one.name}`; set it in the recipe or by `--{name}.{one.name}`.")
    return given
