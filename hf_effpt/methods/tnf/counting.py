"""Which words are rare: a count of all words of the training rows, by hash."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_effpt.core.errors import EffptError

from .lookup import hashes_of, words_of

# Words to gather before they are counted; with many different ones it grows along, which keeps the sorting linear.
CHUNK = 1 << 22


def count_words(batches: Iterable[Any], kinds_V: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Counts the whole words of rows of token ids.

    Args:
        batches: arrays of token ids of shape `(rows, sequence_length)`.
        kinds_V (`Tensor` of shape `(vocab_size,)`): what each token is to the words of a row.

    Returns:
        The hash of every different word, rising, and its count; int64 of shape `(different_words,)`.
    """
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting, number = [], 0
    for batch in batches:
        ids_BL = torch.from_numpy(np.asarray(batch, dtype=np.int64))
        words = words_of(ids_BL, kinds_V)
        wanted_BL = words.whole_BL & (words.first_BL == torch.arange(ids_BL.shape[1]))
        waiting.append(hashes_of(ids_BL, words)[wanted_BL].numpy())
        number += len(waiting[-1])
        if number >= max(CHUNK, 2 * len(keys)):
            keys, counts = _merged(keys, counts, waiting)
            waiting, number = [], 0
    return _merged(keys, counts, waiting)


def _merged(keys: np.ndarray, counts: np.ndarray, waiting: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The counts with those of the waiting words added."""
    if not waiting:
        return keys, counts
    new_keys, new_counts = np.unique(np.concatenate(waiting), return_counts=True)
    both = np.union1d(keys, new_keys)
    total = np.zeros(len(both), np.int64)
    total[np.searchsorted(both, keys)] = counts
    total[np.searchsorted(both, new_keys)] += new_counts
    return both, total


def bounds_for(words: int, least: int | None, most: int | None) -> tuple[int, int]:
    """The counts between which a word is rare; by default from the size of the text.

    The paper's 100 to 500 occurrences in 3.47 billion words are shares of 2.9e-8 and 1.44e-7. A smaller text has too
    few occurrences at these shares for a note to learn from, so that 5 is the least, and 5 times the least the most.
    """
    if least is None:
        least = max(5, round(2.9e-8 * words))
        least = least if most is None else min(least, most)
    return least, max(round(1.44e-7 * words), 5 * least) if most is None else most


def choose_words(keys: np.ndarray, counts: np.ndarray, least: int, most: int, max_entries: int) -> np.ndarray:
    """The hashes of the rare words, rising; of too many the most frequent, and of equally frequent the lower hashes.

    Raises:
        EffptError: if no word is rare, or every word is.
    """
    if not len(counts):
        raise EffptError(
            "`tnf` found no whole words in the training rows, so there are none to take notes of; check that the rows "
            "are of this tokenizer and longer than a word."
        )
    rare = np.flatnonzero((counts >= least) & (counts <= most))
    if len(rare) in (0, len(counts)):
        fits = "a larger text, for in this one all words are equally frequent"
        if len(rarer := counts[counts < counts.max()]):
            low, high = np.quantile(rarer, [0.5, 0.9], method="nearest")
            fits = f"`min_count: {low}` and `max_count: {high}`"
        raise EffptError(
            f"`tnf` takes notes of words that occur {least} to {most} times, but that is "
            f"{'no word' if not len(rare) else 'every word'} of this text: its {len(counts):,} different words occur "
            f"{counts.min()} to {counts.max()} times, half of them at most {np.median(counts):.0f} times. What would "
            f"do: {fits}."
        )
    order = np.lexsort((keys[rare], -counts[rare]))
    return np.sort(keys[rare[order[:max_entries]]])
