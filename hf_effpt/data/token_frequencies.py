"""Frequencies of tokens in packed rows."""

from collections.abc import Sequence

import numpy as np

from .packed_rows import PackedRows


def token_frequencies(rows: PackedRows, vocab_size: int, special_ids: Sequence[int], sample: int = 8192) -> np.ndarray:
    """Share of each token among those that can be predicted, of shape `(vocab_size,)`, summing to 1.

    Counts are those of up to `sample` rows, evenly spaced, plus one each. Special tokens have no share.
    """
    chosen = np.linspace(0, len(rows) - 1, min(sample, len(rows))).astype(np.int64)
    seen = 1.0 + np.bincount(rows.rows(chosen)["input_ids"].ravel(), minlength=vocab_size)
    seen[list(special_ids)] = 0.0
    return seen / seen.sum()
