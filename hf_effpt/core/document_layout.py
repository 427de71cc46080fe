"""Layout of the documents in a batch of packed rows, and the blocks within which they attend."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

BLOCK = 128  # tokens: documents that fit into one are attended together, longer ones in multiples of it


@dataclass(frozen=True, eq=False)
class DocumentLayout:
    """Places of the documents in a batch; on the host, so that shapes that depend on it need no wait for the device.

    Args:
        rows, length (`int`): shape of the batch in rows and tokens per row.
        bounds (`np.ndarray`): first tokens of the documents in the flattened batch, then the number of its tokens.
            Rows end documents, and padding counts as one.
    """

    rows: int
    length: int
    bounds: np.ndarray

    @classmethod
    def of(cls, document_ids: Tensor) -> "DocumentLayout":
        """Layout of a batch from its `document_ids`, of shape `(batch_size, sequence_length)`.

        Waits for the device unless they are on the CPU.
        """
        ids_BL = document_ids.cpu().numpy()
        starts_BL = np.ones(ids_BL.shape, bool)
        starts_BL[:, 1:] = ids_BL[:, 1:] != ids_BL[:, :-1]
        rows, length = ids_BL.shape
        return cls(rows, length, np.append(np.flatnonzero(starts_BL), ids_BL.size))

    @classmethod
    def pieces(cls, rows: int, length: int, number: int) -> "DocumentLayout":
        """Layout of rows that each hold `number` documents of about equal length."""
        firsts = np.arange(rows)[:, None] * length + np.arange(number) * length // number
        return cls(rows, length, np.append(firsts.ravel(), rows * length))

    @cached_property
    def segments(self) -> np.ndarray:
        """First and last token (exclusive) of each block and its size, of shape `(blocks, 3)`.

        A block has whole documents of one row: one, or as many neighbours as fit into `BLOCK` tokens. Its size is a
        multiple of that, or the row's length. A row whose blocks would have more products is one block.
        """
        bounds, length = self.bounds, self.length
        row_ends = np.arange(1, self.rows + 1) * length
        begins = row_ends - length
        found: list[np.ndarray] = []
        while len(begins):
            farthest = bounds[np.searchsorted(bounds, begins + BLOCK, side="right") - 1]
            own = bounds[np.searchsorted(bounds, begins, side="right")]
            ends = np.minimum(np.maximum(farthest, own), row_ends)
            sizes = np.minimum(-(-(ends - begins) // BLOCK) * BLOCK, length)
            found.append(np.stack([begins, ends, sizes], axis=1))
            unfinished = ends < row_ends
            begins, row_ends = ends[unfinished], row_ends[unfinished]
        segments = np.concatenate(found)
        row = segments[:, 0] // length
        worse = np.bincount(row, segments[:, 2] ** 2, self.rows) >= length**2
        whole = np.flatnonzero(worse) * length
        whole = np.stack([whole, whole + length, np.full_like(whole, length)], axis=1)
        return np.concatenate([segments[~worse[row]], whole])

    @property
    def products(self) -> int:
        """Pairs of a query and a key that attention within `segments` compares, per head."""
        return int((self.segments[:, 2] ** 2).sum())

    @property
    def pairs(self) -> int:
        """Pairs of tokens of one document, which a kernel for documents of varying length compares."""
        return int((np.diff(self.bounds) ** 2).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(np.diff(self.bounds).max())
