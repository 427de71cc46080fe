"""Rows that one process may learn from in an optimizer step, and a queue of those it has learned from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pool:
    """Candidate rows of one process in an optimizer step of a run, or those of them that were trained on."""

    keys_N: Tensor  # int64 keys by example and epoch, for random numbers
    ids_N: Tensor  # int64 indices of the examples in the dataset
    seen: Any  # output of the scorer: scores, `(rows,)`, vectors, `(rows, size)`, or `None`
    step: int
    fraction: float
    seed: int

    def __len__(self) -> int:
        return len(self.keys_N)

    def seeing(self, seen: Tensor) -> Pool:
        """Returns the same rows with the output of a scorer."""
        return replace(self, seen=seen)

    def of(self, rows: Tensor) -> Pool:
        """Returns the rows at these positions."""
        seen = None if self.seen is None else self.seen[rows]
        return replace(self, keys_N=self.keys_N[rows], ids_N=self.ids_N[rows], seen=seen)


@torch.no_grad()
def push(queue_QD: Tensor, size: Tensor, place: Tensor, rows_ND: Tensor) -> None:
    """Appends rows to a first-in-first-out queue, in place; of more rows than it has places, the last.

    `size` and `place` are int64 scalars: the number of places in use, and the next one to write.
    """
    rows_ND = rows_ND[-len(queue_QD) :]
    at_N = (place + torch.arange(len(rows_ND), device=rows_ND.device)) % len(queue_QD)
    queue_QD[at_N] = rows_ND.to(queue_QD.dtype)
    place.copy_((place + len(rows_ND)) % len(queue_QD))
    size.copy_((size + len(rows_ND)).clamp(max=len(queue_QD)))
