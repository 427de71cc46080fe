"""Characters are known by their bytes, however these are divided into tokens."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from hf_effpt.core.characters import is_apart, spelled, spelling_of
from hf_effpt.data.words import parts_words

# The libraries' tables of characters are of different years.
TEXT = "a\u2014b\u00e9\u3002\u4e2d\U00020021\U0001f600\u00bf. \u0434\u2009z"


@pytest.mark.parametrize("first", [0x80, 0x2000, 0x3000, 0x9F00, 0xFE00, 0x1FF00, 0x2A600])
def test_characters_that_words_do_not_go_on_with_are_those_of_bert(first):
    codes = torch.arange(first, first + 0x180)
    assert is_apart(codes).tolist() == [parts_words(chr(code)) for code in codes.tolist()]


@pytest.mark.parametrize("seed", range(6))
def test_any_division_of_a_text_is_read(seed):
    """Against the characters of the text that each token begins and ends within."""
    draw = np.random.default_rng(seed)
    raw = TEXT.encode()
    owner = [number for number, character in enumerate(TEXT) for _ in character.encode()]
    cuts = sorted({0, len(raw), *draw.choice(len(raw), 4 + 4 * seed).tolist()})
    spans = list(pairwise(cuts))
    expected = np.zeros((3, len(spans)), bool)
    for place, (first, end) in enumerate(spans):
        inside = first > 0 and owner[first] == owner[first - 1]
        goes_on = end < len(raw) and owner[end] == owner[end - 1]
        apart = [parts_words(TEXT[owner[at]]) for at in (first, end - 1)]
        expected[0, place] = inside
        expected[1, place] = not inside and goes_on and owner[first] == owner[end - 1] and apart[0]
        expected[2, place] = inside and not goes_on and owner[first] == owner[end - 1] and apart[1]
    spellings = torch.tensor([[spelling_of(raw[first:end]) for first, end in spans]])
    assert np.array_equal(torch.cat(spelled(spellings)).numpy(), expected)


@pytest.mark.parametrize("token", [b"", b"word", "\u2014".encode(), "\u4e2d\u6587 text".encode()])
def test_whole_characters_need_nothing(token):
    assert spelling_of(token) == 0
    assert not torch.stack(spelled(torch.tensor([[spelling_of(token)] * 2]))).any()
