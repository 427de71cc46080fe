"""Dotted flags, `--training.budget 10min`, that change a recipe from the command line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

from .file import parse_yaml
from .settings import SECTIONS


def _split_flags(flags: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """Yields the path and the value of each flag of a command line.

    A flag without a value is `True`, several values are a list, and a value in braces or brackets, or `null`, is YAML.
    """
    words = list(flags)
    while words:
        flag, equals, attached = words.pop(0).partition("=")
        if not flag.startswith("--"):
            raise EffptError(f"{flag!r} belongs to no flag; settings are written `--section.key value`.")
        values = [attached] if equals else []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        path = flag[2:].replace("-", "_").split(".")
        if path[0] not in SECTIONS:
            raise EffptError(
                f"There is no setting `{flag}`; settings are written `--section.key value`. {_hint(path[0])}"
            )
        read = [_value(flag, value) for value in values]
        yield path, True if not read else read[0] if len(read) == 1 else read


def _hint(word: str) -> str:
    """Suggests the setting meant by a flag without a section, or the section nearest to a mistyped one."""
    for section, kind in SECTIONS.items():
        if kind is not None and word in {field.name for field in fields(kind)}:
            return f"Did you mean `--{section}.{word}`?"
    return f"For section `{word}`, {nearest(word, list(SECTIONS))}"


def _value(flag: str, text: str) -> Any:
    return parse_yaml(text, f"`{flag}`") if text[:1] in ("{", "[") or text in ("null", "~") else text


def apply_overrides(sections: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Returns a copy of a recipe's sections with dotted flags applied; of equal flags the last counts.

    Args:
        sections (`Mapping[str, Any]`): the recipe's plain content.
        flags (`Sequence[str]`): command-line words, `["--methods.layerdrop.p", "0.1", "--training.bf16"]`.

    Raises:
        EffptError: for a word that belongs to no flag, a flag of no section, or one that reaches into a plain value.
    """
    changed = dict(sections)
    for path, value in _split_flags(flags):
        inner = changed
        for depth, name in enumerate(path[:-1], start=1):
            below = inner.get(name)
            if below is not None and not isinstance(below, Mapping):
                raise EffptError(f"`--{'.'.join(path)}` reaches into `{'.'.join(path[:depth])}`, which is {below!r}.")
            inner[name] = dict(below or {})
            inner = inner[name]
        inner[path[-1]] = value
    return changed
