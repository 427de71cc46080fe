"""Pieces of a corpus that can be read apart: files, or parts of the rows of a dataset."""

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np
from datasets import Dataset

from hf_effpt.data.corpus import Corpus
from hf_effpt.data.datasets_sources import DatasetReader
from hf_effpt.data.file_readers import kind_of, read_file

# Text of a dataset that is read together; and of a task, unless their number is given, up to so many tasks.
PIECE_BYTES, TASK_BYTES, TASKS = 64 * 2**20, 128 * 2**20, 1000


def pieces_of(corpus: Corpus) -> list[Corpus]:
    """Cuts a corpus into pieces, in order, which together have its documents.

    Pieces are files; parts of the rows of a dataset; files of one that is streamed, so that each task downloads its
    own. A mixture with weights is one piece, since each document depends on those drawn before.
    """
    if corpus.members:
        weighted = any("weight" in source for source in corpus.sources or ())
        return [corpus] if weighted else [piece for member in corpus.members for piece in pieces_of(member)]
    if corpus.files and all(map(kind_of, corpus.files)):
        return [
            Corpus(
                str(path),
                partial(read_file, path, corpus.text_column, corpus.documents),
                lambda: corpus.fingerprint,
                path.stat().st_size,
                files=[path],
            )
            for path in corpus.files
        ]
    read = corpus.read
    if not isinstance(read, DatasetReader):
        return [corpus]
    number = read.dataset.num_shards if not isinstance(read.dataset, Dataset) else _ranges(corpus, len(read.dataset))
    return [
        Corpus(
            f"{corpus.name}, part {part + 1} of {number}",
            read.part(part, number),
            lambda: corpus.fingerprint,
            None if corpus.num_bytes is None else corpus.num_bytes // number,
            files=corpus.files,
        )
        for part in range(number)
    ]


def _ranges(corpus: Corpus, rows: int) -> int:
    """Number of parts that the rows of a dataset are cut into."""
    return max(1, min(rows, -(-(corpus.num_bytes or 0) // PIECE_BYTES)))


def tasks_of(pieces: Sequence[Corpus], tasks: int | None) -> list[tuple[int, int]]:
    """Groups of pieces in a row, of about as many bytes, each as its first piece and the one after its last.

    `tasks` is their number, at most; by default one for every 128 MiB, up to 1,000. It never depends on the machine.
    """
    sizes = np.array([piece.num_bytes or 0 for piece in pieces], float)
    if not sizes.all():  # unknown or empty
        sizes += max(1.0, sizes.mean() / 1000)
    known = all(piece.num_bytes is not None for piece in pieces)
    usual = max(1, -(-int(sizes.sum()) // TASK_BYTES)) if known else len(pieces)
    wanted = min(tasks or min(usual, TASKS), len(pieces))
    # The task of a piece is where its middle is; each task has at least one piece.
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    task = (middle * wanted).astype(int)
    ends = [*(np.flatnonzero(np.diff(task)) + 1).tolist(), len(pieces)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def joined_pieces(pieces: Sequence[Corpus], name: str) -> Corpus:
    """Pieces in a row as one corpus."""
    sizes = [piece.num_bytes for piece in pieces]
    return Corpus(
        name,
        lambda: chain.from_iterable(piece.read() for piece in pieces),
        lambda: pieces[0].fingerprint,
        None if None in sizes else sum(size or 0 for size in sizes),
        files=list(dict.fromkeys(path for piece in pieces for path in piece.files)),
    )
