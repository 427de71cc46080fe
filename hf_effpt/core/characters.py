"""Characters that several tokens spell in parts of their UTF-8 bytes, as byte-level tokenizers do.

B batch, L row length.
"""

import unicodedata
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

# First bits of the fields of a spelling: how many bytes the last character lacks, and the bits of those it has; how
# many bytes continue the character before, and their bits; if there are no others; if what lacks bytes is the first.
_LACKS, _TAIL, _CONTINUES, _HEAD, _ONLY, _FIRST = 0, 2, 17, 19, 37, 38
MOST = 3  # tokens after the first that a character goes on in
# Ranges of Chinese characters, each of which BERT takes for a word.
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def spelling_of(token: bytes) -> int:
    """Bits that say how a token of these bytes begins and ends within characters; 0 if it has whole ones only."""
    head = next((place for place, byte in enumerate(token[:MOST]) if not _continues(byte)), len(token[:MOST]))
    spelling = head << _CONTINUES | _bits(token[:head]) << _HEAD | (0 < head == len(token)) << _ONLY
    for count in range(1, min(MOST, len(token)) + 1):
        first = token[-count]
        if _continues(first):
            continue
        length = sum(first >= least for least in (0x00, 0xC0, 0xE0, 0xF0))
        if count < length:
            tail = (first & 0xFF >> length + 1) << 6 * (count - 1) | _bits(token[len(token) - count + 1 :])
            spelling |= length - count << _LACKS | tail << _TAIL | (count == len(token)) << _FIRST
        break
    return spelling


def _continues(byte: int) -> bool:
    return 0x80 <= byte < 0xC0


def _bits(token: bytes) -> int:
    """Bits that bytes of UTF-8 after the first add to a character."""
    bits = 0
    for byte in token:
        bits = bits << 6 | byte & 0x3F
    return bits


def spelled(spelling_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of each token in characters that several tokens spell: three bool tensors of shape `(B, L)`.

    The first is `True` at tokens that go on with the character of the token before, the second at tokens that begin
    with such a character, and the third at those that end with one, if no word goes on with it ([`is_apart`]).
    """
    length = spelling_BL.shape[1]
    padded_BL = pad(spelling_BL, (0, MOST))
    inside_BL, ends_BL = (torch.zeros_like(padded_BL, dtype=torch.bool) for _ in range(2))
    begins_BL = torch.zeros_like(spelling_BL, dtype=torch.bool)
    lacks_BL, code_BL = spelling_BL >> _LACKS & 3, spelling_BL >> _TAIL & 0x7FFF
    for step in range(1, MOST + 1):
        later_BL = padded_BL[:, step : step + length]
        count_BL, only_BL = later_BL >> _CONTINUES & 3, (later_BL >> _ONLY & 1).bool()
        taken_BL = torch.minimum(lacks_BL, count_BL)
        code_BL = code_BL << 6 * taken_BL | (later_BL >> _HEAD & 0x3FFFF) >> 6 * (count_BL - taken_BL)
        whole_BL = only_BL & (taken_BL == count_BL)
        apart_BL = (taken_BL > 0) & (taken_BL == lacks_BL) & is_apart(code_BL)
        inside_BL[:, step : step + length] |= taken_BL > 0
        begins_BL |= apart_BL & (spelling_BL >> _FIRST & 1).bool()
        ends_BL[:, step : step + length] |= apart_BL & whole_BL
        lacks_BL = torch.where(whole_BL, lacks_BL - taken_BL, 0)
    return inside_BL[:, :length], begins_BL, ends_BL[:, :length]


def is_apart(codes: Tensor) -> Tensor:
    """`True` for code points beyond ASCII that no word goes on with: white space, punctuation, Chinese characters."""
    return torch.searchsorted(_borders(codes.device), codes, right=True) % 2 == 1


@lru_cache
def _borders(device: torch.device) -> Tensor:
    """Code points, rising, before which it changes whether a word goes on with a character."""
    punctuation = [code for code in range(0x80, 0x20000) if _is_punctuation_or_space(chr(code))]
    ranges = sorted([*((code, code) for code in punctuation), *_CHINESE])
    borders: list[int] = []
    for first, last in ranges:
        if borders and borders[-1] == first:
            borders[-1] = last + 1
        else:
            borders += [first, last + 1]
    return torch.tensor(borders, device=device)


def _is_punctuation_or_space(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" or character.isspace()
