"""Counts all words of the training rows by hash, and chooses the rare ones."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_effpt.core.errors import EffptError
from hf_effpt.core.shares import part_of

from .lookup import hashes_of, words_of

CHUNK = 1 << 22  # words to gather between counts; at least twice the different words, so that sorting stays linear


def count_words(batches: Iterable[Mapping[str, Any]], kinds_V: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Counts the whole words of rows, within one document where they have `document_ids`, as they are looked up.

    Batches hold arrays of shape `(rows, sequence_length)`. Returns the hashes of the different words, rising, and
    their counts; both int64.
    """
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting, number = [], 0
    for batch in batches:
        found = {name: torch.from_numpy(np.asarray(values, dtype=np.int64)) for name, values in batch.items()}
        ids_BL = found["input_ids"]
        words = words_of(ids_BL, kinds_V, found.get("document_ids"))
        wanted_BL = words.whole_BL & (words.first_BL == torch.arange(ids_BL.shape[1]))
        waiting.append(hashes_of(ids_BL, words)[wanted_BL].numpy())
        number += len(waiting[-1])
        if number >= max(CHUNK, 2 * len(keys)):
            keys, counts = _merged(keys, counts, waiting)
            waiting, number = [], 0
    return _merged(keys, counts, waiting)


def _merged(keys: np.ndarray, counts: np.ndarray, waiting: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Adds the waiting words to the counts."""
    if not waiting:
        return keys, counts
    new_keys, new_counts = np.unique(np.concatenate(waiting), return_counts=True)
    both = np.union1d(keys, new_keys)
    total = np.zeros(len(both), np.int64)
    total[np.searchsorted(both, keys)] = counts
    total[np.searchsorted(both, new_keys)] += new_counts
    return both, total


def bounds_for(words: int, least: int | None, most: int | None) -> tuple[int, int]:
    """Least and most occurrences of a rare word; by default from the number of words in the text.

    The paper's 100 to 500 occurrences in 3.47 billion words are shares of 2.9e-8 and 1.44e-7. In a small text a note
    could not learn from so few, so the least is at least 5, and the most at least 5 times the least.
    """
    if least is None:
        least = max(5, part_of(2.9e-8, words))
        least = least if most is None else min(least, most)
    return least, max(part_of(1.44e-7, words), 5 * least) if most is None else most


def choose_words(keys: np.ndarray, counts: np.ndarray, least: int, most: int, max_entries: int) -> np.ndarray:
    """Hashes of the rare words, rising; at most `max_entries`, the most frequent first, then the lower hashes.

    Raises an `EffptError` if no word is rare, or every word is.
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
