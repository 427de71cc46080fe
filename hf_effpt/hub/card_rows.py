"""Formats values as cells of a model card's tables."""

from collections.abc import Iterable, Mapping
from typing import Any

Rows = list[tuple[str, str]]


def part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return record.get(key) or {}


def cell(value: Any) -> str:
    """Formats `value` as one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def rows(given: Iterable[tuple[str, Any, str]]) -> Rows:
    """Formats (name, value, format) and leaves out those without a value."""
    return [(name, cell(form.format(value))) for name, value, form in given if value is not None]


def width_rows(widths: Iterable[Iterable[int]] | None) -> list[tuple[str, ...]]:
    """Returns index, attention heads and feed-forward neurons of each layer; `widths` holds the latter two."""
    return [(str(index), *(f"{width:,}" for width in layer)) for index, layer in enumerate(widths or ())]
