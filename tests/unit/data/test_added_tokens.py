"""Words of a domain in the vocabulary of a tokenizer."""

import copy

import pytest
from datasets import Dataset

from hf_effpt import train_tokenizer
from hf_effpt.core.errors import EffptError
from hf_effpt.data.added_tokens import pieces_of, pieces_of_added, with_words, words_to_add

TEXTS = Dataset.from_dict(
    {"text": ["the cat sat on the mat"] * 400 + ["a b c d e f g h i j k l m n o p q r s t u v w x y z"]}
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=320)


def test_words_that_save_most_tokens_are_learned(tokenizer):
    domain = ["acetylsalicylic acid and warfarin, warfarin dicumarol"] * 6 + ["hapaxlegomenon"]
    found = words_to_add(tokenizer, 2, domain)
    assert set(found) <= {"acetylsalicylic", "warfarin", "dicumarol"}
    assert len(found) == 2
    with pytest.raises(EffptError, match="is 50, but the text has only"):
        words_to_add(tokenizer, 50, domain)


def test_words_of_a_file(tokenizer, tmp_path):
    (tmp_path / "words.txt").write_text("dicumarol\n\nhepatitis\ndicumarol\n")
    assert words_to_add(tokenizer, str(tmp_path / "words.txt"), []) == ["dicumarol", "hepatitis"]
    (tmp_path / "none.txt").write_text("\n")
    for name, said in (("none.txt", "has no word that the tokenizer lacks"), ("nowhere.txt", "there is no such file")):
        with pytest.raises(EffptError, match=said):
            words_to_add(tokenizer, str(tmp_path / name), [])


def test_they_are_one_token_and_all_others_stay(tokenizer, tmp_path):
    grown = with_words(tokenizer, ["dicumarol", "hepatitis"])
    size = len(tokenizer)
    assert len(grown) == size + 2
    assert "dicumarol" not in tokenizer.get_vocab()
    assert size in pieces_of(grown, "the dicumarol")
    assert len(pieces_of(grown, "dicumarol")) == 1 < len(pieces_of(tokenizer, "dicumarol"))
    assert grown("the cat sat").input_ids == tokenizer("the cat sat").input_ids
    assert pieces_of_added(tokenizer, grown) == {
        size: pieces_of(tokenizer, "dicumarol"), size + 1: pieces_of(tokenizer, "hepatitis"),
    }  # fmt: skip
    grown.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("a dicumarol").input_ids == grown("a dicumarol").input_ids


def test_longer_words_begin_with_them(tokenizer):
    grown = with_words(tokenizer, ["hepatitis"])
    assert pieces_of(grown, "hepatitis") == pieces_of(grown, "hepatitisa")[:1]


def test_lines_are_normalized_and_must_be_one_word(tokenizer, tmp_path):
    (tmp_path / "words.txt").write_text("Hepatitis\nCAFÉ\n")
    assert words_to_add(tokenizer, str(tmp_path / "words.txt"), []) == ["hepatitis", "cafe"]
    for text, said in (("heart attack", "'heart attack'"), ("covid-19", "'covid-19'"), ("\u0301x\n\u0301", "lines")):
        (tmp_path / "words.txt").write_text(text)
        with pytest.raises(EffptError, match=said):
            words_to_add(tokenizer, str(tmp_path / "words.txt"), [])
    (tmp_path / "words.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(EffptError, match="is not text in UTF-8"):
        words_to_add(tokenizer, str(tmp_path / "words.txt"), [])


def test_vocabularies_that_cannot_be_added_to_are_refused(tokenizer):
    with pytest.raises(EffptError, match="is a BPE; leave it out"):
        words_to_add(train_tokenizer(TEXTS, vocab_size=320, kind="bpe"), 1, [])
    later = copy.deepcopy(tokenizer)
    later.add_tokens(["zzz"])
    with pytest.raises(EffptError, match="without holes or tokens added later"):
        words_to_add(later, 1, [])
