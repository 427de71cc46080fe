"""Builders of fixed-length rows from documents: one stream, or whole pieces of documents."""

import numpy as np

from hf_effpt.data.vocabulary import SpecialIds

# Tokens of pieces that are placed together, at least 64 rows: enough for each piece to find a row that it fills.
BLOCK_TOKENS = 2**19


class StreamRows:
    """Cuts one stream of documents into rows `[CLS] + (L - 2 tokens) + [SEP]`, documents separated by `[SEP]`.

    `length` is L, the tokens per row; `dtype` is that of the rows.
    """

    def __init__(self, length: int, ids: SpecialIds, dtype: np.dtype):
        self.length, self.ids, self.dtype = length, ids, dtype
        self._carried = np.empty(0, dtype)

    def add(self, tokens: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
        """Rows that these tokens complete; documents end after `ends` of them, and the last one may go on."""
        stream = np.concatenate([self._carried, np.insert(tokens, ends, self.ids.sep)])
        inner = self.length - 2
        count = len(stream) // inner
        rows = np.empty((count, self.length), self.dtype)
        rows[:, 0] = self.ids.cls
        rows[:, 1:-1] = stream[: count * inner].reshape(count, inner)
        rows[:, -1] = self.ids.sep
        self._carried = stream[count * inner :].copy()
        return {"input_ids": rows}

    def finish(self) -> dict[str, np.ndarray]:
        """No rows: an incomplete last row is dropped."""
        return {"input_ids": np.empty((0, self.length), self.dtype)}


class IsolatedRows:
    """Cuts each document into pieces `[CLS] ... [SEP]` of at most L tokens and fits whole pieces into rows.

    The arguments are those of `StreamRows`. Rows come with `document_ids`: 1, 2, ... for the pieces of a row from
    left to right, 0 for padding. A block of pieces, placed together, ends with the last whole piece among 524,288
    tokens (of 64 rows, if they are longer).
    """

    def __init__(self, length: int, ids: SpecialIds, dtype: np.dtype):
        self.length, self.ids, self.dtype = length, ids, dtype
        # A piece has at least three tokens.
        self.document_dtype = np.dtype(np.uint8 if length // 3 <= 255 else np.uint16)
        self._block = max(BLOCK_TOKENS, 64 * length)
        # Tokens that wait for their block to be full, and where documents end among them. They begin with a piece.
        self._waiting, self._ends = np.empty(0, dtype), np.empty(0, np.int64)

    def add(self, tokens: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of full blocks of pieces; arguments as for `StreamRows`."""
        self._ends = np.concatenate([self._ends, ends + len(self._waiting)])
        self._waiting = np.concatenate([self._waiting, tokens])
        built = [self._empty()]
        while len(self._waiting) >= self._block:
            begun = self._ends[: np.searchsorted(self._ends, self._block, side="right")]
            last = begun[-1] if len(begun) else 0
            inner = self.length - 2
            built.append(self._place(last + (self._block - last) // inner * inner))
        return {name: np.concatenate([block[name] for block in built]) for name in built[0]}

    def finish(self) -> dict[str, np.ndarray]:
        """Rows of the pieces still waiting."""
        return self._place(len(self._waiting)) if len(self._waiting) else self._empty()

    def _empty(self) -> dict[str, np.ndarray]:
        shape = (0, self.length)
        return {"input_ids": np.empty(shape, self.dtype), "document_ids": np.empty(shape, self.document_dtype)}

    def _place(self, stop: int) -> dict[str, np.ndarray]:
        """Rows of the first `stop` waiting tokens, whole pieces."""
        inner, tokens = self.length - 2, self._waiting[:stop]
        sizes = np.diff(np.union1d(self._ends[self._ends < stop], [stop]), prepend=0)
        self._waiting, self._ends = self._waiting[stop:].copy(), self._ends[self._ends > stop] - stop
        pieces_of = -(-sizes // inner)
        # All pieces of a document but the last are full.
        lengths = np.full(pieces_of.sum(), inner)
        lengths[np.cumsum(pieces_of) - 1] = sizes - (pieces_of - 1) * inner
        row, offset, number, count = best_fit(lengths + 2, self.length)

        input_ids = np.full(count * self.length, self.ids.pad, self.dtype)
        document_ids = np.zeros(count * self.length, self.document_dtype)
        start = row * self.length + offset
        input_ids[start] = self.ids.cls
        input_ids[start + 1 + lengths] = self.ids.sep
        within = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        input_ids[np.repeat(start + 1, lengths) + within] = tokens
        span = np.arange(len(tokens) + 2 * len(lengths)) - np.repeat(np.cumsum(lengths + 2) - lengths - 2, lengths + 2)
        document_ids[np.repeat(start, lengths + 2) + span] = np.repeat(number, lengths + 2)
        shape = (count, self.length)
        return {"input_ids": input_ids.reshape(shape), "document_ids": document_ids.reshape(shape)}


def best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Fits pieces into rows, the largest first, each where it leaves least room (best-fit decreasing; Johnson, 1973).

    `sizes` of shape `(pieces,)` and `capacity`, of a row, are in tokens. Returns the row, the offset in the row and
    the number in the row (from 1) of each piece; and the number of rows, sorted by their earliest piece.
    """
    rows, offsets, numbers = ([0] * len(sizes) for _ in range(3))
    held: list[int] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r is set while some row has room for exactly r tokens, so one shift finds the best fit.
    rooms = 0
    known = sizes.tolist()
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = known[piece]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(held)
            held.append(0)
        held[row] += 1
        rows[piece], offsets[piece], numbers[piece] = row, capacity - room, held[row]
        if room > size:
            with_room[room - size].append(row)
            rooms |= 1 << (room - size)
    first = np.full(len(held), len(sizes))
    np.minimum.at(first, rows, np.arange(len(sizes)))
    place = np.empty(len(held), np.int64)
    place[np.argsort(first)] = np.arange(len(held))
    return place[rows], np.array(offsets), np.array(numbers), len(held)
