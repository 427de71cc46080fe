"""Runs of a script that is called again: those that are finished are kept, if they are what is asked for."""

import json
from pathlib import Path
from typing import Any

from hf_effpt import Recipe
from hf_effpt.pretraining import FREE


def is_kept(folder: Path, recipe: Recipe) -> bool:
    """Returns `True` if the folder holds a finished run of this recipe, `False` if it holds no finished run.

    Ends the script for a run of other settings, which must not pass for this one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.json").is_file():
        return False
    found, wanted = (
        _settings(json.loads((folder / "run.json").read_text()).get("recipe") or {}),
        _settings(recipe.resolved()),
    )
    if other := sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name)):
        raise SystemExit(f"{folder} holds a run of other settings ({', '.join(other)}); name another --out")
    return True


def _settings(sections: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recipe by their dotted names, without those that change no result."""
    every = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    free = {"training.output_dir", *(f"{section}.{key}" for section in ("data", "model") for key in FREE)}
    return {name: value for name, value in every.items() if name not in free}
