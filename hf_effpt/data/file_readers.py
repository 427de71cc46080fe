"""Reader of documents from files, by the kind that their ending tells."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from hf_effpt.core.errors import EffptError
from hf_effpt.data.cache import content_hash
from hf_effpt.data.document_cuts import DocumentCut, cut_documents, guessed_cut
from hf_effpt.data.json_readers import read_json, read_jsonl
from hf_effpt.data.table_readers import parquet_text_bytes, read_csv, read_parquet
from hf_effpt.data.text_stream import PACKED, opened, strings_of

logger = logging.getLogger(__name__)
Reader = Callable[[], Iterator[str]]  # starts a pass over the documents
# Parts of a corpus: its reader, a function that hashes the contents, bytes if known.
Source = tuple[Reader, Callable[[], str], int | None]

COLUMN_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
ENDINGS = (".txt", *COLUMN_READERS)
SUPPORTED = (
    f"{', '.join(ENDINGS)} (all but the last also packed, as {' or '.join('.txt' + ending for ending in PACKED)})"
)
SMALL_BYTES = 2**20  # files that are smaller on average may well be one document each


def kind_of(path: Path) -> str | None:
    """The ending, without that of packing, that tells how a file is read; `None` for other files."""
    name = path.name.lower()
    unpacked = next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)
    kind = next((ending for ending in ENDINGS if unpacked.endswith(ending)), None)
    return None if kind == ".parquet" and unpacked != name else kind


def cut_of(files: Sequence[Path], asked: DocumentCut | None) -> DocumentCut | None:
    """The cut of the `.txt` files, by default the likely one; `None` if there are none."""
    texts = [path for path in files if kind_of(path) == ".txt"]
    if asked or not texts:
        return asked if texts else None
    small = sum(map(_text_bytes, texts)) < len(texts) * SMALL_BYTES
    cut = "file" if small and len(texts) > 1 else guessed_cut(strings_of(texts[0]))
    logger.info("%s: documents are cut by `%s`, as it seems; data.documents says otherwise", texts[0], cut)
    return cut


def _text_bytes(path: Path) -> int:
    """Bytes of a text file, of a packed one as far as tells whether it is small."""
    size = path.stat().st_size
    if path.suffix.lower() not in PACKED or size >= SMALL_BYTES:
        return size
    with opened(path) as file:
        return len(file.read(2 * SMALL_BYTES))


def open_files(
    files: Sequence[Path], text_column: str, cut: DocumentCut | None, cache_dir: str | os.PathLike | None = None
) -> Source:
    """Reader, fingerprint and size of a list of files.

    The first record of each kind of file is read at once. Raises an `EffptError` for a file that cannot be read.
    """
    for path in files:
        if kind_of(path) is None:
            kind = path.suffix or "file without an ending"
            raise EffptError(f"{path} is a {kind}; the text must be in {SUPPORTED} files.")
    readers = [partial(read_file, path, text_column, cut) for path in files]
    first = {kind_of(path): reader for path, reader in reversed([*zip(files, readers, strict=True)])}
    for kind in COLUMN_READERS:
        if kind in first:
            next(first[kind](), None)
    sizes = [
        parquet_text_bytes(path, text_column) if kind_of(path) == ".parquet" else path.stat().st_size for path in files
    ]

    def read() -> Iterator[str]:
        for reader in readers:
            yield from reader()

    def fingerprint() -> str:
        rule = f"{content_hash(files, cache_dir)}-{text_column}-{cut}"
        return hashlib.sha256(rule.encode()).hexdigest()[:32]

    return read, fingerprint, None if any(path.suffix.lower() in PACKED for path in files) else sum(sizes)


def read_file(path: Path, text_column: str, cut: DocumentCut | None) -> Iterator[str]:
    """Documents of a file, long ones of text files in parts."""
    kind = kind_of(path)
    return cut_documents(strings_of(path), cut) if kind == ".txt" else COLUMN_READERS[kind](path, text_column)
