"""Writes a proposed recipe as YAML with a reason beside each setting."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_effpt.core.files import write_atomically

PLAIN_END = "...\n"  # that YAML puts after a value that is no list or mapping


def recipe_text(sections: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str], head: list[str]) -> str:
    """The recipe as YAML; `reasons` are by `section.key`, and `head` the lines of a comment on top."""
    lines = [f"# {line}".rstrip() for line in head]
    for section, values in sections.items():
        lines.append(f"{section}:")
        for key, value in values.items():
            if reason := reasons.get(f"{section}.{key}"):
                lines.append(f"  # {reason}")
            written = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
            lines.append(f"  {key}: {written.removesuffix(PLAIN_END).strip()}")
    return "\n".join(lines) + "\n"


def write_recipe(path: Path, text: str) -> None:
    """Writes the recipe, after its folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
