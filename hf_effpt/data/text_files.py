"""Files of text: those that match a pattern, or those below a folder, of one split if they are sorted by splits."""

import glob
import logging
import os
import re
from collections import Counter
from pathlib import Path

from datasets.data_files import FILES_TO_IGNORE, SPLIT_KEYWORDS

from hf_effpt.core.errors import EffptError
from hf_effpt.data.file_readers import SUPPORTED, kind_of

logger = logging.getLogger(__name__)

# Spellings of a split in names of folders and files, as `datasets` reads them.
SPLITS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
# A shard in `data/`, which has the name of any split.
SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\.")
LISTED = 5  # files that a warning names


def files_of_pattern(pattern: Path) -> list[Path]:
    """Files that match, in sorted order, each once, however many links lead to it.

    The metadata of a dataset is left out, unless the pattern names it. A warning lists what matches and is not read.
    Raises an `EffptError` if there is nothing else.
    """
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True) if Path(name).is_file())
    left_out = [path for path in found if path.name in FILES_TO_IGNORE and path.name != pattern.name]
    real: dict[Path, Path] = {}
    for path in sorted(set(found) - set(left_out), key=lambda path: (path.absolute() != path.resolve(), path)):
        real.setdefault(path.resolve(), path)
    files = sorted(real.values())
    if not files:
        raise EffptError(f"No file matches {str(pattern)!r} (seen from {Path.cwd()}).")
    if not_read := [str(path) for path in found if path not in files]:
        logger.warning(
            "Files that match %s and are not read, as metadata of a dataset or links to files read before: %s%s",
            pattern,
            ", ".join(not_read[:LISTED]),
            f" and {len(not_read) - LISTED:,} more" if len(not_read) > LISTED else "",
        )
    return files


def files_of_folder(folder: Path, split: str) -> tuple[list[Path], bool]:
    """Readable files below a folder, in sorted order, and `True` if they are of a split.

    Splits are told apart as `datasets` does: if files are named as shards on the Hub are, by whatever they call it
    (`data/{split}-00000-of-00001.parquet`); else, if some folders below are named after splits (`train/`,
    `wiki-valid/`), only files in those of `split` are read; else, if some files are (`train-00000.txt`), only those of
    `split`; else all. Names that begin with `.` or `__` are left out, and so is the metadata of a dataset. A warning
    lists all other files that are not read.

    Raises an `EffptError` if there is no such file.
    """
    found, links = _below(folder)
    files = [path for path in found if kind_of(path)]
    left_out = [path for path in found if not kind_of(path)]
    if not files:
        kinds = Counter(path.suffix or path.name for path in found)
        listing = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
        raise EffptError(
            f"The folder {folder} has no readable text: it holds {listing}, needed is one of {SUPPORTED}."
        )
    parts = {path: path.relative_to(folder).parts for path in files}
    splits = {path: _split_of_shard(parts[path]) for path in files}
    if not any(splits.values()):
        splits = {path: _split_among(parts[path][:-1]) for path in files}
    if not any(splits.values()):
        splits = {path: _split_among(parts[path][-1:]) for path in files}
    named = sorted({of for of in splits.values() if of})
    if named:
        left_out += [path for path in files if splits[path] is None]
        files = [path for path in files if splits[path] == SPLITS.get(split, split)]
    if not files:
        raise EffptError(
            f"The files in {folder} are named after the splits {named}, none of them {split!r}. Set data.split, or "
            f"name the files: {folder}/*{next(iter(parts)).suffix}"
        )
    if left_out or links:
        logger.warning("%s", _not_read(folder, sorted(left_out), links))
    return files, bool(named)


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files below a folder, and links that are not followed: to folders, to nothing, to files found already."""
    files, links = [], []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        links += [path for name in folders if (path := Path(root, name)).is_symlink()]
        files += [Path(root, name) for name in names if not name.startswith(".") and name not in FILES_TO_IGNORE]
    own = {path for path in files if not path.is_symlink()}
    real = {path.resolve() for path in own}
    for path in sorted(set(files) - own):
        target = path.resolve()
        if path.is_file() and target not in real:
            own.add(path)
            real.add(target)
        else:
            links.append(path)
    return sorted(own), sorted(links)


def _split_of_shard(parts: tuple[str, ...]) -> str | None:
    found = SHARD.match(parts[1]) if len(parts) == 2 and parts[0] == "data" else None
    return SPLITS.get(found[1], found[1]) if found else None


def _split_among(names: tuple[str, ...]) -> str | None:
    """The split that the first of these names after a split has in it, between numbers and punctuation."""
    words = (word for name in names for word in re.split(r"[-._ 0-9]+", name.lower()))
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _not_read(folder: Path, files: list[Path], links: list[Path]) -> str:
    """Warning of what is not read in a folder."""
    kinds = {
        f"not of a kind read, {SUPPORTED}": [path for path in files if not kind_of(path)],
        "of no split, by folder or name": [path for path in files if kind_of(path)],
        "links to folders, to nothing or to files that are read already": links,
    }
    listings = []
    for why, paths in kinds.items():
        names = [str(path.relative_to(folder)) for path in paths[:LISTED]]
        more = [f"and {len(paths) - LISTED:,} more"] if len(paths) > LISTED else []
        if paths:
            listings.append(f"{len(paths):,} {why} ({', '.join([*names, *more])})")
    return f"Files of {folder} that are not read: {'; '.join(listings)}."
