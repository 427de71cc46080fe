"""Scores that were measured after a run, in its record and on its model card."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_effpt.core.files import read_json, write_atomically, write_json

from .card import model_card


def add_scores(folder: str | os.PathLike, scores: Mapping[str, Any]) -> bool:
    """Adds scores to the `run.json` of a run's folder, and to its model card unless somebody has edited that.

    Args:
        folder (`str` or `os.PathLike`): of a finished run or an export; any other is left alone.
        scores (`Mapping[str, Any]`): by name, as `evaluate` returns them; those of the same name are replaced.

    Returns:
        `bool`: whether they are on the card now.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        return False
    run = read_json(folder / "run.json")
    own, address = card_of(folder, run)
    run["scores"] = {**(run.get("scores") or {}), **scores}
    write_json(folder / "run.json", run)
    if own:
        write_atomically(folder / "README.md", model_card(run, address).save)
    return own


def card_of(folder: Path, run: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether the card in a folder is the one that its run wrote, and the address on the Hub it was written for."""
    path = folder / "README.md"
    if not path.is_file():
        return True, None
    text = path.read_text(encoding="utf-8")
    found = re.search(r'from_pretrained\("([^"]+)"', text)  # the run may have named another repository
    for address in (None, found[1] if found else None):
        if text == str(model_card(run, address)):
            return True, address
    return False, None
