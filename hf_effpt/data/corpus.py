"""Corpora: any source of text as documents that can be read again and again."""

import glob
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.data.cache import check_unchanged, content_hash, stamp
from hf_effpt.data.datasets_sources import open_hub, open_saved
from hf_effpt.data.document_cuts import CUTS, DocumentCut
from hf_effpt.data.file_readers import ENDINGS, READERS, Source, guess_cut, parquet_text_bytes, read_txt
from hf_effpt.data.long_documents import Part, in_parts, joined
from hf_effpt.data.pydoc import open_pydoc
from hf_effpt.data.text_files import SUPPORTED, files_of_folder, files_of_pattern

logger = logging.getLogger(__name__)
SMALL_BYTES = 2**20  # files that are smaller on average may well be one document each


class Corpus:
    """Documents from one source.

    Args:
        name (`str`): Name in reports and errors.
        read (`Callable[[], Iterator[str]]`): Starts a new pass over the documents; blank ones are skipped.
        fingerprint (`Callable[[], str]`): Hash of the contents, computed at first use.
        num_bytes (`int`, *optional*): Estimated UTF-8 bytes of text, if known without reading.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text in tabular sources.
        files (`Sequence[Path]`, *optional*): Files that are read.
        documents (`str`, *optional*): How `.txt` files are cut into documents, if there are some; see `open_corpus`.
        guessed (`bool`, *optional*, defaults to `False`): `True` if nobody has said so.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Iterator[str]],
        fingerprint: Callable[[], str],
        num_bytes: int | None = None,
        text_column: str = "text",
        files: Sequence[Path] = (),
        documents: DocumentCut | None = None,
        guessed: bool = False,
    ):
        self.name, self.num_bytes, self.text_column, self.files = name, num_bytes, text_column, tuple(files)
        self.documents, self.guessed = documents, guessed
        self._stamps: list[tuple[int, ...]] = []
        self._read, self._fingerprint = read, fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the contents: equal contents, equal fingerprint."""
        self._stamps = [stamp(path) for path in self.files]
        return self._fingerprint()

    def check_unchanged(self) -> None:
        """Raises an `EffptError` if a file has changed since the fingerprint was computed."""
        if self._stamps:
            check_unchanged(self.files, self._stamps)

    def texts(self) -> Iterator[str]:
        """Yields every document that is not blank; raises an `EffptError` at the end of the pass if there was none."""
        return joined(self.parts())

    def parts(self) -> Iterator[str]:
        """Yields the documents of `texts`, long ones in [`Part`]s, so that memory does not grow with their length."""
        empty = blank = True
        for text in in_parts(self._checked()):
            blank = blank and (not text or text.isspace())
            if not blank:
                empty = False
                yield text
            blank = blank or not isinstance(text, Part)
        if empty:
            raise EffptError(
                f"The dataset {self.name!r} is empty: it holds no document with text in it. Point data.dataset at "
                "files with text, or use builtin:pydoc to try things out."
            )

    def _checked(self) -> Iterator[str]:
        """The pass as it is read; raises an `EffptError` for what is no text, or cannot be encoded."""
        for number, text in enumerate(self._read(), start=1):
            if text is not None:
                check_text(text, f"{self.name}, document {number:,}")
                yield text

    def in_parts(self) -> "Corpus":
        """The same text, of which each part of a long document counts as a document."""
        parts = copy(self)
        parts._read = lambda: map(str, self.parts())
        return parts

    def __repr__(self) -> str:
        return f"Corpus({self.name!r})"


def corpus_of(texts: Sequence[str], name: str = "texts in memory") -> Corpus:
    """Corpus of documents in memory."""
    documents = list(texts)
    for number, text in enumerate(documents, start=1):
        check_text(text, f"{name}, document {number:,}")

    def fingerprint() -> str:
        hashes = b"".join(hashlib.sha256(text.encode()).digest() for text in documents)
        return hashlib.sha256(hashes).hexdigest()[:32]

    return Corpus(name, lambda: iter(documents), fingerprint, sum(len(text.encode()) for text in documents))


def check_text(text: Any, where: str) -> None:
    """Raises an `EffptError` for what is no string, or has half of a surrogate pair, which no tokenizer accepts."""
    if not isinstance(text, str):
        raise EffptError(f"{where}: this is a {type(text).__name__}, but documents must be strings.")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise EffptError(
            f"{where}: character {error.start:,} is half of a surrogate pair (U+{ord(text[error.start]):04X}), which "
            "no tokenizer accepts. Replace it, as "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') does."
        ) from error


def open_corpus(
    dataset: str,
    *,
    text_column: str = "text",
    split: str = "train",
    streaming: bool = False,
    documents: DocumentCut | None = None,
) -> Corpus:
    """Opens a source of text.

    `dataset` may be

    - a folder of `.txt`, `.jsonl` and `.parquet` files, sub-folders included, in sorted order; if folders or files
      are named after splits (`validation/`, `train-00000.parquet`), only files of `split`;
    - one such file, or a pattern (`corpus/train-*.parquet`);
    - a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`;
    - `builtin:pydoc`, the English documentation of the Python packages installed on this machine;
    - a dataset on the Hub, `organisation/name`, or `organisation/name:configuration` if it has several.

    Args:
        dataset (`str`): The source.
        text_column (`str`, *optional*, defaults to `"text"`): Column that holds the text.
        split (`str`, *optional*, defaults to `"train"`): Split to read, if the source has splits.
        streaming (`bool`, *optional*, defaults to `False`): If `True`, reads a Hub dataset during the download and
            keeps no copy; local sources are always streamed.
        documents (`str`, *optional*): Documents of a `.txt` file: `"blank_lines"`, what stands between blank lines;
            `"lines"`, each line that is not blank; `"file"`, the whole file. By default `"file"` if there are several
            of under a megabyte on average; else guessed from the first one: blank lines if it has some in its first
            megabyte, or is wrapped at a margin, and else lines. Other kinds of source are not cut.

    Raises:
        EffptError: the source does not exist, cannot be reached, or has no such column.
    """
    dataset = str(dataset)
    if documents not in (None, *CUTS):
        raise EffptError(f"documents={documents!r} is no way to cut a file; choose one of {', '.join(CUTS)}.")
    if dataset == "builtin:pydoc":
        return Corpus(dataset, *open_pydoc())
    if dataset.startswith("builtin:"):
        raise EffptError(f"There is no dataset {dataset!r}; the only one built in is builtin:pydoc.")
    path, files = Path(dataset).expanduser(), []
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        *source, tables = open_saved(path, text_column, split)
        return Corpus(dataset, *source, text_column, tables)
    elif path.is_dir():
        files = files_of_folder(path, split)
    elif path.exists():
        files = [path]
    elif glob.has_magic(dataset):
        files = files_of_pattern(path)
    elif _looks_like_path(dataset):
        raise EffptError(
            f"There is no file or folder {dataset!r} (looked for {path.absolute()}). Give a file or folder of "
            f"{SUPPORTED}, a saved datasets folder, a Hub dataset `organisation/name`, or builtin:pydoc."
        )
    else:
        source = open_hub(dataset, text_column, split, streaming)
    if not files:
        return Corpus(dataset, *source, text_column)
    cut = _cut(files, documents)
    return Corpus(dataset, *_open_files(files, text_column, cut), text_column, files, cut, guessed=not documents)


def _looks_like_path(dataset: str) -> bool:
    """`True` unless `dataset` can be a Hub id: `name` or `organisation/name`, with an optional `:configuration`."""
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?", dataset)
    return not is_id or Path(dataset).suffix in ENDINGS


def _cut(files: list[Path], asked: DocumentCut | None) -> DocumentCut | None:
    """The cut of the `.txt` files, by default the likely one; `None` if there are none."""
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    if asked or not texts:
        return asked if texts else None
    small = sum(path.stat().st_size for path in texts) < len(texts) * SMALL_BYTES
    cut = "file" if small and len(texts) > 1 else guess_cut(texts[0])
    logger.info("%s: documents are cut by `%s`, as it seems; data.documents says otherwise", texts[0], cut)
    return cut


def _open_files(files: list[Path], text_column: str, cut: DocumentCut | None) -> Source:
    """Reader, fingerprint and size of a list of files; tables, and the first .jsonl file, are checked at once."""
    for path in files:
        if path.suffix.lower() not in ENDINGS:
            kind = path.suffix or "file without an ending"
            raise EffptError(f"{path} is a {kind}; the text must be in {SUPPORTED} files.")
    readers = [
        partial(read_txt, path, cut)
        if path.suffix.lower() == ".txt"
        else partial(READERS[path.suffix.lower()], path, text_column)
        for path in files
    ]
    num_bytes = sum(
        parquet_text_bytes(path, text_column) if path.suffix.lower() == ".parquet" else path.stat().st_size
        for path in files
    )
    for path, reader in zip(files, readers, strict=True):
        if path.suffix.lower() == ".jsonl":
            next(reader(), None)
            break

    def read() -> Iterator[str]:
        for reader in readers:
            yield from reader()

    def fingerprint() -> str:
        rule = f"{content_hash(files)}-{text_column}-{cut}"
        return hashlib.sha256(rule.encode()).hexdigest()[:32]

    return read, fingerprint, num_bytes
