"""Predictability of a text: how much the token beside it tells of a token, which differs between texts."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from hf_effpt.data.packed_rows import PackedRows
from hf_effpt.data.token_frequencies import token_frequencies

TOKENS = 262_144  # that pairs are counted in: more would tell more, so that only equal numbers compare
HELD_OUT = 65_536  # tokens at most that they are tried on


@dataclass(frozen=True)
class TextMeasures:
    """Measures of a text in nats a token: the loss of token frequencies alone, and what one neighbour saves of it."""

    floor: float
    saved: float

    @property
    def predictability(self) -> float:
        """Share of the floor that a neighbour saves."""
        return self.saved / self.floor


def measure_text(train: Dataset, held_out: Dataset, vocab_size: int, special_ids: list[int]) -> TextMeasures:
    """Measures held-out rows against pairs of neighbours counted in training rows, both from [`pack`].

    A pair's probability is its count, smoothed by token frequencies (Witten and Bell, 1991); the mean is that of the
    token before and the token after.
    """
    shares = token_frequencies(PackedRows(train), vocab_size, special_ids)
    counted, tried = _ids(train, TOKENS), _ids(held_out, HELD_OUT)
    known = ~np.isin(tried, special_ids)
    floor = -np.log(shares[tried[known]]).mean()
    losses = [
        _loss_of_pairs(counted[:, :-1], counted[:, 1:], tried[:, :-1], tried[:, 1:], shares),
        _loss_of_pairs(counted[:, 1:], counted[:, :-1], tried[:, 1:], tried[:, :-1], shares),
    ]
    return TextMeasures(float(floor), float(floor - np.mean(losses)))


def _ids(rows: Dataset, tokens: int) -> np.ndarray:
    """Evenly spaced rows with about as many tokens."""
    packed = PackedRows(rows)
    number = min(len(packed), max(1, tokens // packed.sequence_length))
    return packed.rows(np.linspace(0, len(packed) - 1, number).astype(np.int64))["input_ids"]


def _loss_of_pairs(
    given: np.ndarray, then: np.ndarray, tried_given: np.ndarray, tried_then: np.ndarray, shares: np.ndarray
) -> float:
    """Mean loss of tokens `tried_then`, each predicted from the neighbour `tried_given`, by the counts of pairs."""
    size = len(shares)
    pairs, counts = np.unique(given.ravel() * size + then.ravel(), return_counts=True)
    seen, kinds = np.bincount(given.ravel(), minlength=size), np.bincount(pairs // size, minlength=size)
    asked = tried_given.ravel() * size + tried_then.ravel()
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    count = np.where(pairs[place] == asked, counts[place], 0)
    known, new = seen[tried_given.ravel()], np.maximum(1, kinds[tried_given.ravel()])
    backed = shares[tried_then.ravel()]
    predicted = (count + new * backed) / (known + new)
    return float(-np.log(predicted[backed > 0]).mean())
