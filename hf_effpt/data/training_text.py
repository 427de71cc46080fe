"""Training rows as methods see them, with the facts of their vocabulary."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from hf_effpt.data.packed_rows import PackedRows, identity_of_rows
from hf_effpt.data.vocabulary import special_ids
from hf_effpt.data.words import WordEdges, word_edges

ROWS = 8192  # read at a time


class TrainingText:
    """The training rows as methods see them.

    `rows` were packed with `tokenizer`; `seed` is the run's, for random draws. Raises an `EffptError` if the tokenizer
    lacks a special token.
    """

    def __init__(self, rows: PackedRows, tokenizer, seed: int):
        ids = special_ids(tokenizer)
        self.rows, self.seed = rows, seed
        self.pad, self.mask = ids.pad, ids.mask
        self.specials = sorted(tokenizer.all_special_ids)
        self.unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
        self._tokenizer = tokenizer

    @cached_property
    def words(self) -> WordEdges:
        """The [`WordEdges`] of the tokenizer; raises an `EffptError` if it does not mark words."""
        return word_edges(self._tokenizer)

    @property
    def identity(self) -> str:
        """Number, length and hash of the rows."""
        return identity_of_rows(self.rows)

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """All rows: `input_ids`, and `document_ids` if they have them, int64 of shape `(rows, sequence_length)`."""
        for first in range(0, len(self.rows), ROWS):
            yield self.rows.rows(np.arange(first, min(first + ROWS, len(self.rows))))
