"""Sample of a corpus: pieces from all over its text, whatever its size, documents and packing."""

from collections.abc import Iterator

import numpy as np

from hf_effpt.core.random import indexed
from hf_effpt.data.corpus import Corpus

# Short documents are drawn, and handled, together: as many as have a thousandth of the sample, but no more than this.
PIECE_BYTES, PIECES = 64 * 1024, 1024
# Separates the pieces sampled here from the documents that a seed holds out for validation.
SAMPLE_SEED = 0x746F6B
# The sample may grow so far beyond its size before pieces are dropped from it, to so much of their share.
SLACK, THINNED = 1.25, 0.75
# Between the documents of a piece: white space, whose end stands before the first word as before any other.
BETWEEN = "\n "
DRAWS = 4096  # made at a time


def sample_of(corpus: Corpus, max_bytes: int) -> list[str]:
    """Samples about `max_bytes` of text, in order, all of it if there is no more.

    The text is cut into pieces: documents in a row, up to a size, or parts of a long one. Each is drawn by a random
    number that its place determines. If the size of the text is unknown, or not what it was estimated to be, drawn
    pieces are dropped again, those of the highest numbers first.

    Raises the `EffptError` of text that cannot be read, or is empty.
    """
    share = min(1.0, max_bytes / corpus.num_bytes) if corpus.num_bytes else 1.0
    least = min(PIECE_BYTES, max(1, max_bytes // PIECES))
    sample: list[tuple[float, str]] = []
    size = held_size = 0
    held: list[str] = []
    draws = _draws()
    drawn = next(draws)
    for text in corpus.in_parts().texts():
        if drawn < share:
            held.append(text)
        held_size += len(text)
        if held_size < least:
            continue
        if held:
            sample.append((drawn, BETWEEN.join(held)))
            size += _bytes(sample[-1][1])
        while size > SLACK * max_bytes and len(sample) > 1:
            share *= THINNED
            sample = [one for one in sample if one[0] < share]
            size = sum(_bytes(text) for _, text in sample)
        held, held_size, drawn = [], 0, next(draws)
    if held:
        sample.append((drawn, BETWEEN.join(held)))
    return _cut(sample, max_bytes)


def _cut(sample: list[tuple[float, str]], max_bytes: int) -> list[str]:
    """The pieces with the lowest numbers, together at most `max_bytes`, of which the last may be cut."""
    left, taken = max_bytes, {}
    for place in sorted(range(len(sample)), key=lambda place: sample[place][0]):
        text = sample[place][1]
        if (size := _bytes(text)) > left:
            text = text.encode()[:left].decode(errors="ignore")
        taken[place] = text
        left -= size
        if left <= 0:
            break
    return [taken[place] for place in sorted(taken)]


def _draws() -> Iterator[float]:
    """Random numbers of the pieces, from 0 to below 1; the first piece is always drawn."""
    first = 0
    while True:
        drawn = indexed(np.arange(first, first + DRAWS), SAMPLE_SEED)
        if not first:
            drawn[0] = 0.0
        yield from drawn.tolist()
        first += DRAWS


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
