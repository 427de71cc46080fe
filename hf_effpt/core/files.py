"""Replacing what a folder holds in one go, so that a failed save never costs the previous one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import EffptError

# Inside the folder itself: a rename is only atomic within one filesystem, and `out` may be a mount point.
STAGING = ".incoming"
# A run that has its record is done, so the record is the last file to arrive.
LAST = "run.json"


@contextmanager
def replacing_folder_contents(out: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder to write into; once the block has ended well, its files replace their namesakes in `out`.

    Other files of `out` (checkpoints, say) stay. When the block fails, `out` is as it was before, and is not even
    created. What a killed process left behind is removed by the next call. One writer at a time.

    Args:
        out (`str` or `os.PathLike`): the folder to update; created if need be.

    Raises:
        EffptError: if `out` is a file or cannot be written, or if the disk is full.
    """
    out = Path(out)
    existed = out.is_dir()
    staging = out / STAGING
    try:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise EffptError(f"{str(out)!r} is no folder and cannot become one: name another.") from error
    except PermissionError as error:
        raise EffptError(f"No permission to write into {str(out)!r}: name another folder.") from error
    try:
        yield staging
        files = [path for path in staging.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: (path.name == LAST, path)):
            target = out / file.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    except Exception as error:
        if is_disk_full(error):
            free = shutil.disk_usage(out).free / 1e6
            raise EffptError(
                f"The disk is full ({free:.1f} MB free) and {str(out)!r} could not be saved; what it held before is "
                "unchanged. Free some space, or choose a folder on another disk."
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that no space or quota is left on the disk."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors and tokenizers report it from Rust, in an exception of their own that has no errno
    return f"(os error {errno.ENOSPC})" in str(error) or f"(os error {errno.EDQUOT})" in str(error)
