import gzip
import random

import pytest

from hf_effpt.data import Corpus, corpus_of, open_corpus, train_tokenizer
from hf_effpt.data.text_sample import BETWEEN, sample_of


def size_of(sample):
    return sum(len(text.encode()) for text in sample)


def corpus(texts, num_bytes):
    return Corpus("some", lambda: iter(texts), lambda: "f", num_bytes=num_bytes)


def test_a_small_text_is_taken_whole_and_in_order():
    texts = ["one", "zwölf", "x" * 70_000, "three"]
    sample = sample_of(corpus_of(texts), 2**20)
    assert BETWEEN.join(sample) == BETWEEN.join(texts)


@pytest.mark.parametrize("factor", [None, 0.1, 0.5, 1.0, 1.3])
@pytest.mark.parametrize("words", [1, 12])
def test_pieces_come_from_all_over_whatever_is_known_of_the_size(factor, words):
    texts = [f"{number:05}é" * words for number in range(12_000 // words)]
    whole = size_of(texts)
    sample = sample_of(corpus(texts, factor and int(factor * whole)), 16_000)
    assert (0.6 if factor == 1.3 else 0.9) * 16_000 < size_of(sample) <= 16_000
    places = [int(text[:5]) / len(texts) for text in sample if len(text) > 5]
    assert places == sorted(places)
    for quarter in range(4):
        assert 0.1 < sum(quarter <= 4 * place < quarter + 1 for place in places) / len(places) < 0.4


def test_packed_files_are_sampled_as_plain_ones(tmp_path):
    draw = random.Random(2)
    for name, letters in (("a", "abcdefgh"), ("b", "ßßйкцуке")):
        lines = "\n".join(" ".join("".join(draw.choices(letters, k=4)) for _ in range(12)) for _ in range(400))
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(lines.encode()))
    opened = open_corpus(str(tmp_path), documents="lines")
    assert opened.num_bytes is None
    sample = sample_of(opened, 6000)
    assert 5000 < size_of(sample) <= 6000
    assert 0.3 < sum("й" in text or "ß" in text for text in sample) / len(sample) < 0.8


def test_few_pieces_are_larger_than_the_sample():
    (only,) = sample_of(corpus_of(["ü" * 5000]), 101)
    assert only == "ü" * 50
    assert size_of(sample_of(corpus(["ab " * 30_000] * 3, 10), 1000)) == 1000


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_short_documents_train_the_tokenizer_that_the_text_as_one_trains(kind):
    draw = random.Random(4)
    words = ["".join(draw.choices("etaoinshr", k=draw.randint(1, 6))) for _ in range(4000)]
    single, whole = (
        train_tokenizer(corpus_of(texts), vocab_size=384, kind=kind) for texts in (words, [" ".join(words)])
    )
    assert single.get_vocab() == whole.get_vocab()
