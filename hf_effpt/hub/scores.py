"""Adds scores that were measured after a run to its record and model card."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_effpt.core.files import read_json, write_atomically, write_json

from .card import model_card


def add_scores(folder: str | os.PathLike, scores: Mapping[str, Any]) -> bool:
    """Adds scores to the `run.json` of a run's folder, and to its model card unless somebody has edited it.

    Args:
        folder (`str` or `os.PathLike`): folder of a finished run or an export; any other is left alone.
        scores (`Mapping[str, Any]`): by name, as `evaluate` returns them; scores of the same name are replaced.

    Returns:
        `bool`: `True` if the card has them now.
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
    """Returns `True` if a folder's card is as its run wrote it, and the Hub address that it was written for."""
    path = folder / "README.md"
    if not path.is_file():
        return True, None
    text = path.read_text(encoding="utf-8")
    found = re.search(r'from_pretrained\("([^"]+)"', text)  # the card may name another repository than the run
    for address in (None, found[1] if found else None):
        if text == str(model_card(run, address)):
            return True, address
    return False, None
