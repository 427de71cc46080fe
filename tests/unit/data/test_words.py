"""Ends of words for every kind of tokenizer, against BERT's own pre-tokenizer."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.data import corpus_of, train_tokenizer
from hf_effpt.data.words import word_edges

SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
ROLES = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
TEXTS = [
    'The quick\nfox said: "it is (not) so!" — and left…',
    "It\u2019s 3.5 km, e-mail a_b@c.de; «größer» ¿sí?  double  space\ttab",
    "中文 text 和 words。 한국어, ไทย 日本語の文",
]


def words_of(tokenizer, text):
    """The words of a text as rows of tokens are divided into them."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = np.array([encoded["input_ids"]]), encoded["offset_mapping"]
    joined = word_edges(tokenizer).joined(ids)[0]
    words = []
    for (first, end), goes_on in zip(offsets, joined, strict=True):
        if goes_on:
            words[-1] = (words[-1][0], end)
        else:
            words.append((first, end))
    return [word for first, end in words if (word := text[first:end].strip())]


def berts(text):
    """The words of BERT's pre-tokenizer."""
    spaced = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(spaced.normalize_str(text))]


@pytest.fixture(scope="module")
def byte_level():
    return train_tokenizer(corpus_of(TEXTS * 40), vocab_size=512, kind="bpe", lowercase=False)


@pytest.fixture(scope="module")
def metaspace():
    """A SentencePiece-like tokenizer that keeps line breaks."""
    characters = sorted({character for text in TEXTS for character in text if character != " "})
    vocab = [(token, 0.0) for token in SPECIAL] + [("▁", -3.0)] + [(character, -4.0) for character in characters]
    vocab += [(piece, -1.0) for piece in ("▁qu", "ick", "▁said", "wo", "rds", '▁"', "▁(", "!", '!"')]
    backend = Tokenizer(models.Unigram(vocab, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES)


@pytest.mark.parametrize("text", TEXTS[:2])
def test_words_of_byte_level_bpe_are_those_of_bert(byte_level, text):
    """But that a token of several punctuation characters is one word."""
    found = words_of(byte_level, text)
    assert len(found) > 15
    assert [part for word in found for part in berts(word)] == berts(text)
    mixed = [word for word in found if len(berts(word)) > 1 and any(map(str.isalnum, word))]
    assert mixed == []


def test_chinese_characters_are_words_and_letters_of_other_scripts_are_not(byte_level):
    found = words_of(byte_level, TEXTS[2])
    assert {"text", "words", "한국어", "ไทย"} <= set(found)
    assert not any("。" in word and len(word) > 1 for word in found)
    assert not any("中" in word and "text" in word for word in found)


@pytest.mark.parametrize("text", TEXTS[:2])
def test_words_of_sentencepiece_end_at_line_breaks_and_punctuation(metaspace, text):
    assert "▁" in metaspace.convert_ids_to_tokens(metaspace(text)["input_ids"])
    assert [part for word in words_of(metaspace, text) for part in berts(word)] == berts(text)
    assert {"quick", "fox"} <= set(words_of(metaspace, TEXTS[0]))


def fallback(*pieces):
    """A SentencePiece-like tokenizer of these pieces, a space, and all bytes."""
    vocab = [*SPECIAL, "▁", *pieces, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocab], unk_id=1, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES)


def divided(tokenizer, text):
    """The words of a text that tokens spell in parts, which offsets do not tell."""
    ids = np.array([tokenizer(text)["input_ids"]])
    starts = np.flatnonzero(~word_edges(tokenizer).joined(ids)[0])
    decode = tokenizer.backend_tokenizer.decoder.decode
    tokens = tokenizer.convert_ids_to_tokens(ids[0])
    words = [decode(list(part)) for part in np.split(np.array(tokens, object), starts[1:])]
    return [word.strip() for word in words if word.strip()]


def bytes_only(*merges):
    """A byte-level tokenizer that joins these pairs of tokens, as byte-level BPE writes them."""
    vocab = {**SPECIAL, **{letter: 5 + place for place, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}}
    for pair in merges:
        vocab["".join(pair)] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, [*merges], unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES)


# Characters of two to four bytes, of every kind: dashes, quotes, Chinese ones, letters and signs.
SPELLED = [
    "left\u2014right\u2026 \u00abna\u00efve\u00bb o\u2019clock",
    "\u6625\u7720\u4e0d\u89ba\u6681\u3002\u82b1a\u843d",
    "5\u20ac\u00a0\u0434\u043e\u043c \U0001f600x \U00020021\U00020022y",
]
MERGES = (
    (("â", "Ģ"),),  # the first two bytes of a dash
    (("t", "â"), ("tâ", "Ģ")),  # with the letter before
    (("Ģ", "Ķ"), ("ĢĶ", "r")),  # its last two bytes, and the letter after
    (("æ", "ĺ"), ("Ġ", "Ð")),
)


@pytest.mark.parametrize("text", SPELLED)
@pytest.mark.parametrize("tokenizer", [bytes_only(), fallback("e", "ri", "▁o", "ï", "м"), fallback()])
def test_characters_are_words_by_what_all_their_bytes_spell(tokenizer, text):
    assert divided(tokenizer, text) == berts(text)


@pytest.mark.parametrize("merges", MERGES)
def test_bytes_that_are_one_token_with_others_are_read(merges):
    """The word of a token with letters and a part of a sign has both, as one with letters and a sign has."""
    tokenizer = bytes_only(*merges)
    for text in SPELLED:
        found = divided(tokenizer, text)
        assert [part for word in found for part in berts(word)] == berts(text)
        mixed = [word for word in found if len(berts(word)) > 1]
        assert all("—" in word for word in mixed)
        assert len(mixed) <= 1


def test_parts_of_characters_without_the_others_are_letters():
    tokenizer = fallback("a", "b")
    edges = word_edges(tokenizer)
    a, b, first, second, third, comma = tokenizer.convert_tokens_to_ids(
        ["a", "b", "<0xE2>", "<0x80>", "<0x94>", "<0x2C>"]
    )
    rows = np.array([[a, first, b, b], [a, first, second, b], [second, third, b, a], [first, second, third, b]])
    assert edges.joined(rows).tolist() == [
        [False, True, True, True], [False, True, True, True], [False, True, True, True], [False, True, True, False]
    ]  # fmt: skip
    assert edges.joined(np.array([[a, comma, third, a], [a, third, third, a]])).tolist() == [
        [False, False, False, True], [False, True, True, True]
    ]  # fmt: skip
    special = [place for place in range(5) if edges.continues[place] or edges.closes[place]]
    assert special == []


def test_tokens_that_were_added_are_no_bytes():
    tokenizer = bytes_only()
    tokenizer.add_tokens(["â"])  # a byte as byte-level BPE writes it
    spellings = word_edges(tokenizer).spellings
    assert np.count_nonzero(spellings) == 127
    assert spellings[tokenizer.convert_tokens_to_ids("â")] == 0


@pytest.mark.parametrize(
    ("token", "continues", "closes"),
    [
        ("it", True, False), (" it", False, False), (' "', False, True), ('."', False, True), ("'s", False, False),
        ("s.", True, True), (' "it', False, False), ("\n", False, True), (" ", False, False), ("\n\n", False, True),
        ("中国", False, True), ("é", True, False), ("€", True, False), ("$", False, True),
    ],
)  # fmt: skip
def test_a_token_is_judged_by_its_first_and_last_character(token, continues, closes):
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(token)[0][0]
    backend = Tokenizer(models.BPE({**SPECIAL, spelled: 5}, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    edges = word_edges(PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES))
    assert (edges.continues[5], edges.closes[5]) == (continues, closes)


def test_words_of_wordpiece_are_marked(tokenizer):
    edges, tokens = word_edges(tokenizer), tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert edges.continues.tolist() == [token.startswith("##") for token in tokens]
    assert edges.closes[tokens.index(".")]
    assert not edges.closes[tokens.index("e")]


def test_a_tokenizer_that_does_not_mark_words_is_refused():
    backend = Tokenizer(models.BPE(SPECIAL | {"a": 5}, merges=[], unk_token="[UNK]"))
    with pytest.raises(EffptError, match="does not mark where words begin"):
        word_edges(PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES))
