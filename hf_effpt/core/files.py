"""Atomic writes of files and folders: a failed write leaves the old content."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .errors import EffptError, first_line

# Inside the folder itself: a rename is only atomic within one filesystem, and `out` may be a mount point.
STAGING = ".incoming"
COMPLETE = ".complete"  # its name once all files are in it: from then on they replace those of the folder
# A run that has its record is done, so the record is the last file to arrive.
LAST = "run.json"
# Words of libraries that lose the error number: safetensors and tokenizers (Rust), torch's archives, NumPy's `tofile`.
FULL = (
    rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT})\)|unexpected pos \d+ vs \d+|basic_ios::clear: iostream error|"
    r"\d+ requested and \d+ written"
)


def is_disk_full(error: BaseException | None) -> bool:
    """`True` if `error`, or an error that led to it, says that the disk or its quota is full."""
    while error is not None and not isinstance(error, EffptError):  # an `EffptError` has explained its cause
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or re.search(FULL, str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_atomically(path: Path, content: str | Callable[[Path], Any]) -> None:
    """Writes a file atomically; `content` is its text, or a function that writes to the path it is given."""
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True) as beside:
        new = Path(beside, path.name)
        new.write_text(content, encoding="utf-8") if isinstance(content, str) else content(new)
        os.replace(new, path)


def create_once(path: Path, write: Callable[[Path], Any], folder: bool = False) -> None:
    """Creates `path` atomically unless it exists; the first of several processes wins.

    `write` writes the file at the path it is given or, if `folder` is `True`, fills the empty folder there.
    """
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True) as beside:
        new = Path(beside, path.name)
        if folder:
            new.mkdir()
        write(new)
        try:
            new.rename(path) if folder else path.hardlink_to(new)
        except OSError:
            if not path.exists():
                raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes indented JSON atomically, with `null` for numbers that are not finite, which JSON has not."""
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def finite(content: Any) -> Any:
    """Copy of what is to be JSON, with `None` for each number that is NaN or infinite."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in the file `path`; raises `EffptError` if there is something else in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EffptError(f"{path} is damaged ({first_line(error)}): put back a copy of it, or remove it.") from error
    if not isinstance(content, dict):
        raise EffptError(f"{path} is damaged (a {type(content).__name__}, not an object): put back a copy of it.")
    return content


@contextmanager
def replacing_folder_contents(out: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder; when the block succeeds, its files replace those of the same name in `out`.

    Other files of `out`, such as checkpoints, stay. If the block fails, `out` is unchanged, and not created. The next
    call removes remains of a killed process, or finishes what it had begun to replace ([`finish_replacing`]). One
    writer at a time. Raises an `EffptError` if `out` is a file or cannot be written, or if the disk is full.
    """
    out = Path(out)
    existed = out.is_dir()
    staging = out / STAGING
    try:
        finish_replacing(out)
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise EffptError(f"{str(out)!r} is no folder and cannot become one: name another.") from error
    except PermissionError as error:
        raise EffptError(f"No permission to write into {str(out)!r}: name another folder.") from error
    try:
        yield staging
        os.replace(staging, out / COMPLETE)
        finish_replacing(out)
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


def finish_replacing(out: Path) -> None:
    """Moves the files of a killed [`replacing_folder_contents`], which are all written, to their places.

    The record of the run is removed first and arrives last, so that meanwhile the folder holds no finished run.
    """
    complete = out / COMPLETE
    if not complete.is_dir():
        return
    files = sorted(filter(Path.is_file, complete.rglob("*")), key=lambda path: (path.name == LAST, path))
    if any(file == complete / LAST for file in files):
        (out / LAST).unlink(missing_ok=True)
    for file in files:
        target = out / file.relative_to(complete)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(complete)
