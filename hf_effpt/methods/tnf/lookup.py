"""Look-up of words with a note in rows of token ids; shapes are static, and nothing waits for the device.

B batch, L row length, V vocabulary, M entries, C places for occurrences.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hf_effpt.core.characters import spelled
from hf_effpt.core.random import mix

# Kinds of tokens; they are in checkpoints. The mask token continues the word before it, of which it may hide a part.
# `SPECIAL` and `PAD` are no text. `LONE` starts and `ENDING` continues a word and closes it, as punctuation does.
START, CONTINUATION, MASK, SPECIAL, PAD, LONE, ENDING = range(7)
BITS = 3  # of a kind; above them is the spelling of the token, which checkpoints of older versions do not have


def kinds_of(text: Any, vocabulary: int) -> Tensor:
    """Kinds of all tokens of the vocabulary, int64 of shape `(vocabulary,)`, from the run's training text.

    Ids beyond the tokenizer's, which never occur, are special. The bits above the kind are those of
    `core.characters.spelling_of`.
    """
    kinds_V = torch.full((vocabulary,), SPECIAL)
    continues, closes = (torch.from_numpy(np.array(of, bool)) for of in (text.words.continues, text.words.closes))
    opened, ended = torch.where(continues, CONTINUATION, START), torch.where(continues, ENDING, LONE)
    kinds_V[: len(continues)] = torch.where(closes, ended, opened)
    if text.words.spellings is not None:
        kinds_V[: len(continues)] |= torch.from_numpy(text.words.spellings) << BITS
    kinds_V[list(text.specials)] = SPECIAL
    kinds_V[text.mask] = MASK
    kinds_V[text.pad] = PAD
    return kinds_V


class Words(NamedTuple):
    """Span of the word that each token belongs to, and of the text around it; ends are exclusive."""

    first_BL: Tensor  # first position of the word
    end_BL: Tensor  # position after its last token
    whole_BL: Tensor  # `True` if neither its start nor its end is cut off by the row
    text_first_BL: Tensor  # first position of the text, one document if documents are isolated, without padding
    text_end_BL: Tensor  # position after its last token


def words_of(ids_BL: Tensor, kinds_V: Tensor, documents_BL: Tensor | None = None, packed: bool = True) -> Words:
    """Divides rows into words: a token that starts a word, and its continuations within the same document.

    Args:
        ids_BL (`Tensor`): token ids.
        kinds_V (`Tensor`): kind of each token of the vocabulary.
        documents_BL (`Tensor`, *optional*): number of the document of each token, 0 for padding; by default a row is
            one, without its padding tokens.
        packed (`bool`, *optional*, defaults to `True`): if `True`, text as long as the row was cut to that length
            without regard to words, so a word may go on after it; if `False`, text is an example on its own.
    """
    length = ids_BL.shape[1]
    found_BL = kinds_V[ids_BL].long()
    kind_BL = found_BL & (1 << BITS) - 1
    inside_BL, begins_BL, ends_BL = spelled(found_BL >> BITS)
    place_L = torch.arange(length, device=ids_BL.device)
    real_BL = kind_BL != PAD
    if documents_BL is not None:
        real_BL &= documents_BL != 0
    borders_BL = real_BL.diff(dim=1) if documents_BL is None else (real_BL * documents_BL).diff(dim=1) != 0
    borders_BL = nn.functional.pad(borders_BL, (1, 0), value=True)

    closes_BL = (kind_BL == LONE) | (kind_BL == ENDING) | ends_BL
    after_closed_BL = nn.functional.pad(closes_BL[:, :-1], (1, 0)) & ~borders_BL
    continues_BL = (kind_BL == CONTINUATION) | (kind_BL == ENDING)
    goes_on_BL = ((continues_BL & ~begins_BL | (kind_BL == MASK)) & ~after_closed_BL | inside_BL) & ~borders_BL
    first_BL, end_BL = _spans(~goes_on_BL, place_L)
    text_first_BL, text_end_BL = _spans(borders_BL, place_L)

    starts_BL = (kind_BL == START) | (kind_BL == LONE) | (continues_BL & (after_closed_BL | begins_BL))
    whole_BL = starts_BL.gather(1, first_BL)
    if packed:
        limit_B1 = length - ((kind_BL[:, -1:] == SPECIAL) | (kind_BL[:, -1:] == PAD)).long()
        whole_BL &= (end_BL < limit_B1) | (text_end_BL - text_first_BL < length)
    return Words(first_BL, end_BL, whole_BL, text_first_BL, text_end_BL)


def _spans(opens_BL: Tensor, place_L: Tensor) -> tuple[Tensor, Tensor]:
    """First position and end of the span that each position is in; `opens_BL` is `True` at the first of each span."""
    length = len(place_L)
    first_BL = torch.where(opens_BL, place_L, 0).cummax(dim=1).values
    next_BL = torch.where(opens_BL, place_L, length).roll(-1, dims=1)
    next_BL[:, -1] = length
    return first_BL, next_BL.flip(1).cummin(dim=1).values.flip(1)


def documents_in(attention_mask: Any = None, position_ids: Tensor | None = None) -> Tensor | None:
    """Number of the document of each token, 0 for padding, from what an encoder lets it attend to; `None` if to all.

    A mask of shape `(batch_size, sequence_length)` tells tokens from padding. In one of shape `(batch_size, 1,
    sequence_length or 1, sequence_length)`, boolean or additive, a document begins where a token does not attend to
    the one before it; an integer one holds the numbers. Without a tensor, one begins where positions do not rise.
    """
    if isinstance(attention_mask, Mapping):  # of a ModernBERT, for each kind of layer
        attention_mask = attention_mask["full_attention"]
    if not isinstance(attention_mask, Tensor):
        if position_ids is None:
            return None
        before_BL = position_ids.diff(dim=1) > 0
    elif attention_mask.ndim == 2:
        return (attention_mask != 0).long()
    elif attention_mask.dtype == torch.long:
        return attention_mask[:, 0, 0]
    else:
        sees_BLL = attention_mask[:, 0] if attention_mask.dtype == torch.bool else attention_mask[:, 0] == 0
        before_BL = sees_BLL.expand(-1, sees_BLL.shape[2], -1).diagonal(-1, dim1=1, dim2=2)
    return nn.functional.pad(~before_BL, (1, 0), value=True).long().cumsum(dim=1)


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
