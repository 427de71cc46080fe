"""Builders of fixed-length rows from documents: one stream, or whole pieces of documents."""

import numpy as np

from hf_effpt.data.vocabulary import SpecialIds

# Rows of pieces that are placed together: enough for each piece to find a row that it fills.
BLOCK_ROWS = 4096


class StreamRows:
    """Cuts one stream of documents into rows `[CLS] + (L - 2 tokens) + [SEP]`, documents separated by `[SEP]`.

    `length` is L, the tokens per row; `dtype` is that of the rows.
    """

    def __init__(self, length: int, ids: SpecialIds, dtype: np.dtype):
        self.length, self.ids, self.dtype = length, ids, dtype
        self._carried = np.empty(0, dtype)

    def add(self, documents: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Rows that these documents complete."""
        separator = np.array([self.ids.sep], self.dtype)
        parts = [part for document in documents for part in (document, separator)]
        stream = np.concatenate([self._carried, *parts])
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
    left to right, 0 for padding.
    """

    def __init__(self, length: int, ids: SpecialIds, dtype: np.dtype):
        self.length, self.ids, self.dtype = length, ids, dtype
        # A piece has at least three tokens.
        self.document_dtype = np.dtype(np.uint8 if length // 3 <= 255 else np.uint16)
        self._waiting: list[np.ndarray] = []
        self._waiting_tokens = 0

    def add(self, documents: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Rows of full blocks of pieces; documents of the last block wait."""
        built = []
        for document in documents:
            self._waiting.append(document)
            self._waiting_tokens += len(document)
            if self._waiting_tokens >= BLOCK_ROWS * self.length:
                built.append(self._place())
        blocks = [*built, self._empty()]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def finish(self) -> dict[str, np.ndarray]:
        """Rows of the pieces still waiting."""
        return self._place() if self._waiting else self._empty()

    def _empty(self) -> dict[str, np.ndarray]:
        shape = (0, self.length)
        return {"input_ids": np.empty(shape, self.dtype), "document_ids": np.empty(shape, self.document_dtype)}

    def _place(self) -> dict[str, np.ndarray]:
        inner = self.length - 2
        sizes = np.array([len(document) for document in self._waiting])
        pieces_of = -(-sizes // inner)
        tokens = np.concatenate(self._waiting)
        self._waiting, self._waiting_tokens = [], 0
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
