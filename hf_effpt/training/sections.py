"""One section of a recipe: from plain values, through argument parsing, to the dataclass that checks them."""

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, fields, make_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

Section = TypeVar("Section")


def parse_section(name: str, kind: type[Section], values: Any) -> Section:
    """Builds the dataclass `kind` from a section's plain values.

    Strings become the field's own type, so `5e-4`, which YAML 1.1 reads as a string, is a number where one is needed.

    Args:
        name (`str`): the section as the user knows it, `training` or `methods.layerdrop`.
        kind (`type`): the dataclass of the section.
        values (`Mapping[str, Any]`, *optional*): by key; a value of `None` stands for the default.

    Raises:
        EffptError: for an unknown or missing key, or a value that cannot be what its key needs.
    """
    given = check_keys(name, kind, values)
    hints = get_type_hints(kind)
    argv: list[str] = []
    ready: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            ready[key] = _mapping(f"{name}.{key}", hints[key], value)
        elif isinstance(value, list | tuple):
            element = _element(f"{name}.{key}", hints[key], value)
            if element is str or not value:
                ready[key] = [str(item) for item in value]
            else:
                argv += [f"--{key}", *map(str, value)]
        else:
            argv.append(f"--{key}={value}")
    try:
        narrowed = _narrowed(kind, hints, given)
        parser = HfArgumentParser(narrowed, allow_abbrev=False, add_help=False, exit_on_error=False)
        parsed = vars(parser.parse_args(argv))
    except argparse.ArgumentError as error:
        key = (error.argument_name or "").split("/")[0].lstrip("-")
        raise EffptError(f"`{name}.{key}` is {given[key]!r}: {error.message.rstrip('.')}.") from None
    ready |= {key: parsed[key] for key in given if key not in ready}
    try:
        return kind(**ready)
    except EffptError:
        raise
    except (ValueError, ImportError) as error:
        raise EffptError(f"Section `{name}` cannot be used: {error}") from error


def _narrowed(kind: type, hints: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """`kind`, or where a key may be of several types, which the parser cannot tell apart, a dataclass for this one."""
    kinds = {
        field.name: [one for one in _alternatives(hints[field.name]) if one is not type(None)]
        for field in fields(kind)  # pyright: ignore[reportArgumentType]
    }
    if all(len(several) == 1 or str in several for several in kinds.values()):
        return kind
    chosen: list[tuple[str, Any, Any]] = []
    for key, value in given.items():
        # that of a list for a list, and otherwise another
        suiting = sorted(kinds[key], key=lambda one: (get_origin(one) is list) != isinstance(value, list | tuple))
        chosen.append((key, suiting[0] | None, None))
    return make_dataclass(kind.__name__, chosen)


def check_keys(name: str, kind: type, values: Any) -> dict[str, Any]:
    """The section's values that are set, once all of its keys are known and none is missing."""
    if not isinstance(values or {}, Mapping):
        raise EffptError(f"Section `{name}` is {values!r}, but must be a mapping, such as `{name}: {{key: value}}`.")
    settable = [field for field in fields(kind) if field.init]  # pyright: ignore[reportArgumentType]
    valid = [field.name for field in settable]
    for key in values or {}:
        if key not in valid:
            raise EffptError(f"Section `{name}` has no key `{key}`: {nearest(str(key), valid)}")
    given = {key: value for key, value in (values or {}).items() if value is not None}
    for field in settable:
        if field.default is MISSING and field.default_factory is MISSING and field.name not in given:
            raise EffptError(
                f"Section `{name}` needs `{field.name}`; set it in the recipe or by `--{name}.{field.name}`."
            )
    return given


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _mapping(key: str, hint: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    if dict not in [get_origin(kind) or kind for kind in _alternatives(hint)]:
        raise EffptError(f"`{key}` is {dict(value)!r}, but takes no mapping.")
    return dict(value)


def _element(key: str, hint: Any, value: Any) -> type:
    """The type of a list's elements."""
    for kind in _alternatives(hint):
        if get_origin(kind) is list:
            return get_args(kind)[0]
    raise EffptError(f"`{key}` is {list(value)!r}, but takes a single value.")
