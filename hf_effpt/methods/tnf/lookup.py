"""Look-up of words with a note in rows of token ids; shapes are static, and nothing waits for the device.

B batch, L row length, V vocabulary, M entries, C places for occurrences.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_effpt.core.random import mix

# Kinds of tokens. The mask token continues the word before it, of which it may hide a part; from `SPECIAL` on, tokens
# are no text.
START, CONTINUATION, MASK, SPECIAL, PAD = range(5)


def kinds_of(text: Any, vocabulary: int) -> Tensor:
    """Kinds of all tokens of the vocabulary, uint8 of shape `(vocabulary,)`, from the run's training text.

    Ids beyond the tokenizer's, which never occur, are special.
    """
    kinds_V = torch.full((vocabulary,), SPECIAL, dtype=torch.uint8)
    continues = torch.from_numpy(np.array(text.continues, dtype=bool))
    kinds_V[: len(continues)] = torch.where(continues, CONTINUATION, START).to(torch.uint8)
    kinds_V[list(text.specials)] = SPECIAL
    kinds_V[text.mask] = MASK
    kinds_V[text.pad] = PAD
    return kinds_V


class Words(NamedTuple):
    """Span of the word that each token belongs to, and span of the text of each row; ends are exclusive."""

    first_BL: Tensor  # first position of the word
    end_BL: Tensor  # position after its last token
    whole_BL: Tensor  # `True` if neither its start nor its end is cut off by the row
    text_start_B: Tensor  # first position of the row that is no padding
    text_end_B: Tensor  # position after the last


def words_of(ids_BL: Tensor, kinds_V: Tensor) -> Words:
    """Divides rows into words: a token that starts a word, and its continuations."""
    length = ids_BL.shape[1]
    kind_BL = kinds_V[ids_BL]
    place_L = torch.arange(length, device=ids_BL.device)
    goes_on_BL = (kind_BL == CONTINUATION) | (kind_BL == MASK)
    goes_on_BL[:, 0] = False
    first_BL = torch.where(goes_on_BL, 0, place_L).cummax(dim=1).values
    next_BL = torch.where(goes_on_BL, length, place_L).roll(-1, dims=1)
    next_BL[:, -1] = length
    end_BL = next_BL.flip(1).cummin(dim=1).values.flip(1)
    # Rows are cut to length without regard to words, so the last word of a row may be incomplete.
    limit_B1 = length - (kind_BL[:, -1:] >= SPECIAL).long()
    whole_BL = (kind_BL.gather(1, first_BL) == START) & (end_BL < limit_B1)
    text_BL = (kind_BL != PAD).int()
    return Words(first_BL, end_BL, whole_BL, text_BL.argmax(dim=1), length - text_BL.flip(1).argmax(dim=1))


def hashes_of(ids_BL: Tensor, words: Words) -> Tensor:
    """64-bit hashes of the word of each token, a pure function of the word's tokens and their order."""
    place_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    sums_BL = mix(ids_BL + ((place_L - words.first_BL) << 32)).cumsum(dim=1)  # wraps around, as does the difference
    before_BL = sums_BL.gather(1, (words.first_BL - 1).clamp(min=0))
    return sums_BL.gather(1, words.end_BL - 1) - torch.where(words.first_BL > 0, before_BL, 0)


def entries_of(ids_BL: Tensor, words: Words, keys_M: Tensor) -> Tensor:
    """Entry of the word of each token, -1 if it has none; `keys_M` are hashes in rising order."""
    hashes_BL = hashes_of(ids_BL, words)
    place_BL = torch.searchsorted(keys_M, hashes_BL).clamp(max=len(keys_M) - 1)
    return torch.where((keys_M[place_BL] == hashes_BL) & words.whole_BL, place_BL, -1)


class Occurrences(NamedTuple):
    """Words with an entry, row after row, in a fixed number of places, the last of which are unused."""

    entry_C: Tensor
    used_C: Tensor
    row_C: Tensor
    first_C: Tensor
    end_C: Tensor


def places_for(tokens: int) -> int:
    """Number of places for occurrences in this number of tokens; several times the expected one."""
    return min(tokens, max(64, tokens // 8))


def occurrences_of(entry_BL: Tensor, words: Words) -> tuple[Occurrences, Tensor]:
    """First `places_for` words that have an entry, and the number of all such words."""
    length = entry_BL.shape[1]
    place_L = torch.arange(length, device=entry_BL.device)
    hit_T = ((entry_BL >= 0) & (words.first_BL == place_L)).flatten()
    order_T = hit_T.byte().sort(descending=True, stable=True).indices
    at_C = order_T[: places_for(len(hit_T))]
    found = Occurrences(
        entry_C=entry_BL.flatten()[at_C],
        used_C=hit_T[at_C],
        row_C=at_C // length,
        first_C=at_C % length,
        end_C=words.end_BL.flatten()[at_C],
    )
    return found, hit_T.sum()
