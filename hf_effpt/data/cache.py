"""Cache of prepared data: its folder, and builds that arrive whole or not at all."""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import create_once, is_disk_full, write_atomically
from hf_effpt.data.text_stream import PACKED

logger = logging.getLogger(__name__)
# A file changed within this many seconds may change again without its time stamps showing it.
SETTLED_SECONDS = 2.0
# Names the files of a finished build, with their sizes and hashes.
CONTENTS = ".contents.json"
# Stamps that those files had when their hashes were right.
VERIFIED = ".verified.json"


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder for prepared data: `cache_dir`, else `$HF_EFFPT_CACHE`, else `~/.cache/hf_effpt`.

    Raises an `EffptError` if there is no home folder that `~` could be.
    """
    named = cache_dir or os.environ.get("HF_EFFPT_CACHE") or "~/.cache/hf_effpt"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise EffptError(
            f"The cache folder {str(named)!r} cannot be found ({error}). Name one with cache_dir or $HF_EFFPT_CACHE."
        ) from error


def build_once(
    target: Path,
    build: Callable[[Path], None],
    check: Callable[[Path], Any],
    elsewhere: str = "put the cache elsewhere with cache_dir or $HF_EFFPT_CACHE",
) -> Path:
    """Returns the folder `target`; if it is not there yet, `build` fills it, given an empty folder.

    A folder that was emptied, lacks a file, has one of another size or content, or for which `check`, which loads what
    is in it, raises, is built anew. A reader never sees half a folder; of several processes asking at once, one builds
    and the others wait. Contents are compared, by their hashes, only if the stamps of a file are not those that it had
    when they were compared last, so that large caches are not read at each start.

    Raises an `EffptError` if the cache folder cannot be written to, or the disk is full: `elsewhere` says what to do
    if no space can be freed.
    """
    try:
        if is_whole(target, check):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{target}.lock"):
            if not is_whole(target, check):
                for leftover in target.parent.glob(f".{target.name}-*"):  # of killed builds, since the lock is ours
                    shutil.rmtree(leftover)
                if target.exists():
                    logger.warning("%s is damaged, or of an older version: it is built anew", target)
                    shutil.rmtree(target) if target.is_dir() else target.unlink()
                create_once(target, lambda new: _build_listed(new, build), folder=True)
    except Exception as error:
        if is_disk_full(error):
            raise EffptError(
                f"The disk is full: {target.parent} has no room for the prepared data (nothing half-written was "
                f"kept). Free some space, or {elsewhere}."
            ) from error
        if isinstance(error, OSError) and _is_about(target.parent, error):
            raise EffptError(
                f"The folder {target.parent} cannot be written to ({error.strerror or error}). Choose another one: "
                f"{elsewhere}."
            ) from error
        raise
    return target


def _build_listed(folder: Path, build: Callable[[Path], None]) -> None:
    """Builds, and lists the files for `is_whole`; they are on the disk at the end, and not only in its queue."""
    build(folder)
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    listed = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in files.items()}
    (folder / CONTENTS).write_text(json.dumps(listed))
    (folder / VERIFIED).write_text(json.dumps({name: _lasting_stamp(path) for name, path in files.items()}))
    for path in (*files.values(), folder / CONTENTS, folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_whole(folder: Path, check: Callable[[Path], Any] = str) -> bool:
    """`True` if a folder holds what was built."""
    try:
        listed = json.loads((folder / CONTENTS).read_text())
        known = _verified(folder)
        for name, entry in listed.items():
            path, size = folder / name, entry if isinstance(entry, int) else entry["bytes"]
            now = _lasting_stamp(path)
            if now[0] != size:
                return False
            if isinstance(entry, int) or known.get(name) == now:  # older versions listed the sizes only
                continue
            if _digest(path) != entry["sha256"]:
                return False
            known[name] = now
        if known != _verified(folder):
            with suppress(OSError):  # it only saves reading the files again
                write_atomically(folder / VERIFIED, json.dumps(known))
        check(folder)
    except Exception:  # whatever reading a damaged file may raise
        return False
    return True


def _verified(folder: Path) -> dict[str, list[int]]:
    """Stamps of the files at their last comparison."""
    try:
        return dict(json.loads((folder / VERIFIED).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _lasting_stamp(path: Path) -> list[int]:
    """The stamp of a file, without its device, whose number may be another after each start of the machine."""
    return list(stamp(path)[:-1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_about(folder: Path, error: OSError) -> bool:
    """`True` if an error is of the cache folder or a file in it, rather than of the text that is prepared."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    path = Path(os.fsdecode(error.filename)).absolute()
    return path.is_relative_to(folder.absolute()) or folder.absolute().is_relative_to(path)


def stamp(path: Path) -> tuple[int, ...]:
    """Size, two times, inode and device of a file, some of which change when it is written or replaced.

    Raises an `EffptError` if there is no such file.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev


def content_hash(paths: Sequence[Path], cache_dir: str | os.PathLike | None = None) -> str:
    """Hash of the files' contents and kinds in the order given; independent of their paths.

    The result is remembered in the cache folder by paths and stamps, so an unchanged corpus is not read again. Raises
    an `EffptError` if a file cannot be read, or changes meanwhile.
    """
    stamps = [stamp(path) for path in paths]
    seen = [(str(path.resolve()), *one) for path, one in zip(paths, stamps, strict=True)]
    memo = cache_folder(cache_dir) / "fingerprints" / hashlib.sha256(repr(seen).encode()).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{32}", known := memo.read_text()):
            return known
    total = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                total.update(_ending(path).encode() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise _unreadable(path, error) from error
    check_unchanged(paths, stamps)
    fingerprint = total.hexdigest()[:32]
    if all(time.time() - max(one[1:3]) / 1e9 > SETTLED_SECONDS for one in stamps):
        with suppress(OSError):  # it only saves reading the files again
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memo, fingerprint)
    return fingerprint


def _ending(path: Path) -> str:
    """The kind of a file, with that of packing."""
    endings = [ending.lower() for ending in path.suffixes]
    return "".join(endings[-2:] if endings and endings[-1] in PACKED else endings[-1:])


def check_unchanged(paths: Sequence[Path], stamps: Sequence[tuple[int, ...]]) -> None:
    """Raises an `EffptError` if a file is no longer what it was when it had this stamp."""
    for path, before in zip(paths, stamps, strict=True):
        if stamp(path) != before:
            raise EffptError(f"{path} was changed while it was read. Start again once it is complete.")


def _unreadable(path: Path, error: OSError) -> EffptError:
    return EffptError(f"{path} cannot be read ({error.strerror or error}).")
