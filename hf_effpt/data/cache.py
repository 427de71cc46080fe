"""Cache of prepared data: its folder, and builds that arrive whole or not at all."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import create_once, is_disk_full, write_atomically

# A file changed within this many seconds may change again without its time stamp showing it.
SETTLED_SECONDS = 2.0
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)  # errors of a cache folder


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder for prepared data: `cache_dir`, else `$HF_EFFPT_CACHE`, else `~/.cache/hf_effpt`."""
    return Path(cache_dir or os.environ.get("HF_EFFPT_CACHE") or "~/.cache/hf_effpt").expanduser()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns the folder `target`; if it is not there yet, `build` fills it, given an empty folder.

    A reader never sees half a folder; of several processes asking at once, one builds and the others wait. Raises an
    `EffptError` if the cache folder cannot be written to, or the disk is full.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{target}.lock"):
            if not target.exists():
                for leftover in target.parent.glob(f".{target.name}-*"):  # of killed builds, since the lock is ours
                    shutil.rmtree(leftover)
                create_once(target, build, folder=True)
    except Exception as error:
        if is_disk_full(error):
            raise EffptError(
                f"The disk is full: {target.parent} has no room for the prepared data (nothing half-written was "
                "kept). Free some space or put the cache elsewhere with cache_dir or $HF_EFFPT_CACHE."
            ) from error
        if isinstance(error, OSError) and error.errno in UNUSABLE:
            raise EffptError(
                f"The cache folder {target.parent} cannot be written to ({error.strerror}). "
                "Choose another one with cache_dir or $HF_EFFPT_CACHE."
            ) from error
        raise
    return target


def content_hash(paths: Sequence[Path]) -> str:
    """Hash of the files' contents and kinds in the order given; independent of their paths.

    The result is remembered per (path, size, modification time), so an unchanged corpus is not read again.
    """
    stats = [path.stat() for path in paths]
    seen = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)]
    memo = cache_folder() / "fingerprints" / hashlib.sha256(repr(seen).encode()).hexdigest()[:32]
    if memo.exists():
        return memo.read_text()
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(path.suffix.lower().encode() + hashlib.file_digest(file, "sha256").digest())
    fingerprint = total.hexdigest()[:32]
    if all(time.time() - stat.st_mtime > SETTLED_SECONDS for stat in stats):
        with suppress(OSError):  # it only saves reading the files again
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memo, fingerprint)
    return fingerprint
