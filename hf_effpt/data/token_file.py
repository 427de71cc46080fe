"""Tokens of the documents of a corpus on disk: the text is read once, and memory does not grow with it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets.utils import tqdm

from hf_effpt.data.corpus import Corpus
from hf_effpt.data.document_meter import DocumentMeter
from hf_effpt.data.encoding import TextEncoder
from hf_effpt.data.long_documents import Part

# Text tokenised together: a tokenizer needs about 100 bytes of memory a token, and 500 for each text.
BATCH_BYTES, BATCH_TEXTS = 2 * 2**20, 16384
# Documents and tokens read back at a time.
TABLE_ROWS, RUN_TOKENS = 2**16, 2**20
DOCUMENT = np.dtype([("tokens", "<i8"), ("bytes", "<i8"), ("key", "<u8")])


class Run(NamedTuple):
    """Tokens that follow one another, of pieces of documents that have tokens.

    `numbers`, `lengths` and `ends` are, for each piece, the number of its document in the corpus, its tokens, and
    `True` if it ends the document; `tokens` is flat.
    """

    tokens: np.ndarray
    numbers: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray

    def of(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the documents for which `chosen`, of shape `(documents,)`, is `True`, and where these end."""
        here = chosen[self.numbers]
        return self.tokens[np.repeat(here, self.lengths)], np.cumsum(self.lengths[here])[self.ends[here]]


class Count(NamedTuple):
    """Number, UTF-8 bytes and tokens of documents that have tokens; text of control characters alone has none."""

    documents: int
    bytes: int
    tokens: int


class TokenFile:
    """Tokens, sizes and content keys of all documents of a corpus, in order, written by one pass over its text.

    Args:
        folder (`Path`): Folder for its two files.
        encoder ([`TextEncoder`]): Tokenises the text.
    """

    def __init__(self, folder: Path, encoder: TextEncoder):
        self._encoder = encoder
        self._tokens, self._table = folder / "tokens.bin", folder / "documents.bin"

    @property
    def documents(self) -> int:
        """Number of documents, once it is filled."""
        return self._table.stat().st_size // DOCUMENT.itemsize

    def fill(self, corpus: Corpus, empty_ok: bool = False) -> None:
        """Tokenises the corpus; raises the `EffptError` of text that cannot be read, or is empty unless `empty_ok`."""
        bar = tqdm(total=corpus.num_bytes, desc=f"Packing {corpus.name}", unit="B", unit_scale=True, disable=None)
        meter, count, goes_on = DocumentMeter(), 0, False
        with bar, self._tokens.open("wb") as tokens, self._table.open("wb") as table:
            for parts, size in _batches(corpus.parts(empty_ok)):
                encoded = self._encoder.encode_parts(parts, goes_on)
                np.concatenate(encoded).tofile(tokens)
                rows = []
                for part, ids in zip(parts, encoded, strict=True):
                    count += len(ids)
                    if measured := meter.add(part):
                        rows.append((count, *measured))
                        count = 0
                goes_on = isinstance(parts[-1], Part)
                np.array(rows, DOCUMENT).tofile(table)
                bar.update(size)

    def write_chosen(self, folder: Path, chosen: np.ndarray) -> None:
        """Writes the chosen documents, as for `count`, to a token file of their own in a new folder."""
        folder.mkdir()
        copy = TokenFile(folder, self._encoder)
        with copy._tokens.open("wb") as tokens, copy._table.open("wb") as table:
            for run in self.runs():
                run.of(chosen)[0].tofile(tokens)
            first = 0
            for rows in self.table():
                rows[chosen[first : first + len(rows)]].tofile(table)
                first += len(rows)

    def remove(self) -> None:
        """Deletes the files."""
        self._tokens.unlink()
        self._table.unlink()

    def table(self) -> Iterator[np.ndarray]:
        """Yields successive documents, of dtype `DOCUMENT`."""
        with self._table.open("rb") as file:
            while len(rows := np.fromfile(file, DOCUMENT, TABLE_ROWS)):
                yield rows

    def sizes(self) -> Iterator[np.ndarray]:
        """Yields the bytes of successive documents."""
        return (rows["bytes"] for rows in self.table())

    def count(self, chosen: np.ndarray | None = None) -> Count:
        """Counts the documents for which `chosen`, of shape `(documents,)`, is `True`; by default all."""
        found = np.zeros(3, np.int64)
        for rows in self._with_tokens(chosen):
            found += [len(rows), rows["bytes"].sum(), rows["tokens"].sum()]
        return Count(*found.tolist())

    def write_keys(self, path: Path, chosen: np.ndarray) -> None:
        """Writes the content keys of the chosen documents, as for `count`, to a file of uint64."""
        with path.open("wb") as file:
            for keys in self.keys(chosen):
                keys.tofile(file)

    def keys(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the content keys of the chosen documents, as for `count`."""
        return (rows["key"] for rows in self._with_tokens(chosen))

    def _with_tokens(self, chosen: np.ndarray | None) -> Iterator[np.ndarray]:
        first = 0
        for rows in self.table():
            here = rows["tokens"] > 0
            yield rows[here if chosen is None else here & chosen[first : first + len(rows)]]
            first += len(rows)

    def runs(self) -> Iterator[Run]:
        """Yields all tokens in order."""
        first = 0
        with self._tokens.open("rb") as file:
            for table in self.table():
                ends = np.cumsum(table["tokens"])
                # Pieces end where documents do, and where a run does.
                cuts = np.union1d(ends, np.arange(RUN_TOKENS, ends[-1], RUN_TOKENS))
                cuts = cuts[cuts > 0]
                numbers = np.searchsorted(ends, cuts)  # the first of documents that end there: others are empty
                lengths = np.diff(cuts, prepend=0)
                run_of = (cuts - 1) // RUN_TOKENS
                for here in np.split(np.arange(len(cuts)), np.flatnonzero(np.diff(run_of)) + 1):
                    tokens = np.fromfile(file, self._encoder.dtype, lengths[here].sum())
                    yield Run(tokens, first + numbers[here], lengths[here], cuts[here] == ends[numbers[here]])
                first += len(table)


class TokenFiles(TokenFile):
    """Several token files, read as one: the documents of each follow those of the one before."""

    def __init__(self, files: Sequence[TokenFile]):
        self.files = tuple(files)

    @property
    def documents(self) -> int:
        """Number of documents of all files."""
        return sum(file.documents for file in self.files)

    def table(self) -> Iterator[np.ndarray]:
        for file in self.files:
            yield from file.table()

    def runs(self) -> Iterator[Run]:
        first = 0
        for file in self.files:
            for run in file.runs():
                yield run._replace(numbers=first + run.numbers)
            first += file.documents


def _batches(strings: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Groups of parts of documents, each with its size in bytes."""
    parts: list[str] = []
    size = 0
    for part in strings:
        parts.append(part)
        size += len(part.encode())
        if size >= BATCH_BYTES or len(parts) >= BATCH_TEXTS:
            yield parts, size
            parts, size = [], 0
    if parts:
        yield parts, size
