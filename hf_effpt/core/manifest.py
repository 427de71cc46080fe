"""Manifest of a folder: size and SHA-256 of each of its files, by which later damage is found."""

import hashlib
from pathlib import Path

from .files import read_json, write_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Writes the manifest of all files in a folder. It is the last file to arrive, so its presence says: complete."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names}
    write_json(folder / MANIFEST, {"files": files})


def manifest_fault(folder: Path, hashes: bool = True) -> str | None:
    """Short description of what differs in a folder from its manifest; `None` if nothing does.

    Without `hashes` only sizes are compared, which reads no file but the manifest. Files that it does not name are
    left out of account.
    """
    try:
        known = {name: (said["bytes"], said["sha256"]) for name, said in read_json(folder / MANIFEST)["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    if not known:
        return f"`{MANIFEST}` cannot be read"
    for name, (size, digest) in known.items():
        file = folder / name
        if not file.is_file():
            return f"`{name}` is missing"
        if (found := file.stat().st_size) != size:
            return f"`{name}` is damaged: it has {found:,} bytes, and {size} were saved"
        if hashes and _sha256(file) != digest:
            return f"`{name}` is damaged: its bytes are not those that were saved"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
