"""Checks, before any work, that a file or folder can be written where the user wants it."""

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import EffptError


def check_file(path: str | os.PathLike, endings: Sequence[str] = (), name: str = "--out") -> Path:
    """Raises `EffptError` unless a file can be written, once folders above it are created; returns its path.

    Its name must have one of the `endings`, if there are any; `name` is the flag that gave the path.
    """
    target = Path(path)
    if target.is_dir() or str(path).endswith(os.sep):
        raise EffptError(f"`{name}` is {str(path)!r}, which is a folder; name a file in it.")
    if endings and target.suffix.lower() not in endings:
        raise EffptError(f"`{name}` is {str(path)!r}, but its ending must be one of {', '.join(endings)}.")
    _check_above(target, "file", name)
    if target.exists() and not os.access(target, os.W_OK):
        raise EffptError(f"`{name}` is {str(path)!r}, which may not be written to; name another file.")
    return target


def check_folder(path: str | os.PathLike, name: str = "--out") -> Path:
    """Raises `EffptError` unless files can be written into a folder, which need not be there yet; returns its path."""
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise EffptError(f"`{name}` is {str(path)!r}, which is a file; name a folder.")
    _check_above(target / "a file", "folder", name)
    return target


def _check_above(target: Path, kind: str, name: str) -> None:
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise EffptError(f"`{name}` cannot be written, since {above} is not a writable folder; name another {kind}.")
