"""Word vectors from the co-occurrence of tokens."""

import math

import numpy as np
import pytest
from datasets import Dataset, Features, Sequence, Value

from hf_effpt.core.errors import EffptError
from hf_effpt.data import cooccurrence
from hf_effpt.data.cooccurrence import cooccurrences, positive_information, svd_flops, word_vectors
from hf_effpt.data.packed_rows import PackedRows

SPECIAL = range(5)


def packed(ids, documents=None):
    columns = {"input_ids": ids} | ({} if documents is None else {"document_ids": documents})
    length = len(ids[0])
    features = Features({name: Sequence(Value("uint16"), length=length) for name in columns})
    return PackedRows(Dataset.from_dict(columns, features=features))


def counted(rows, size, **settings):
    return cooccurrences(rows, size, SPECIAL, **settings)[0].toarray()


def test_information_of_a_small_text_is_as_by_hand():
    """[CLS] a b c a [SEP]: a and b are 1 and 2 apart, a and c too, b and c 1, and the two a 3."""
    counts, read = cooccurrences(packed([[2, 5, 6, 7, 5, 3]]), 8, SPECIAL)
    by_hand = 12 * np.array([[2 / 3, 1.5, 1.5], [1.5, 0, 1], [1.5, 1, 0]])
    assert counts.toarray()[5:, 5:] == pytest.approx(by_hand)
    assert (counts.sum(), read) == (by_hand.sum(), 6)
    found = positive_information(counts).toarray()
    contexts = [44**0.75, 30**0.75, 30**0.75]
    assert found[6, 7] == pytest.approx(math.log(12 / 30 / (contexts[2] / sum(contexts))), rel=1e-5)
    assert found[5, 6] == pytest.approx(math.log(18 / 44 / (contexts[1] / sum(contexts))), rel=1e-5)
    assert found[6, 5] == pytest.approx(math.log(18 / 30 / (contexts[0] / sum(contexts))), rel=1e-5)
    assert math.log(8 / 44 / (contexts[0] / sum(contexts))) < 0 == found[5, 5]
    assert not found[:5].any()


def test_only_near_words_of_the_same_document_count(monkeypatch):
    """Neither special tokens nor padding count, whatever is read at a time; each pair does in both directions."""
    monkeypatch.setattr(cooccurrence, "AT_A_TIME", 50)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 12, size=(20, 10))
    documents = np.sort(draw.integers(1, 4, size=ids.shape), axis=1)
    expected = np.zeros((2, 12, 12))
    for row, of in zip(ids, documents, strict=True):
        for one, other in ((one, other) for one in range(10) for other in range(10) if 0 < abs(one - other) <= 4):
            if min(row[one], row[other]) >= 5:
                weight = 12 / abs(one - other)
                expected[0, row[one], row[other]] += weight
                expected[1, row[one], row[other]] += weight * (of[one] == of[other])
    assert counted(packed(ids), 12) == pytest.approx(expected[0])
    assert counted(packed(ids, documents), 12) == pytest.approx(expected[1])


def test_so_many_tokens_are_read_in_rows_from_all_over():
    ids = [[2, 5 + number, 5 + number, 3] for number in range(9)]
    counts, read = cooccurrences(packed(ids), 14, SPECIAL, tokens=10)
    assert read == 12
    assert np.flatnonzero(counts.diagonal()).tolist() == [5, 9, 13]


def test_words_that_occur_in_the_same_contexts_have_near_vectors():
    """Words 5 to 9 stand for the same as 10 to 14, next to the words of the same number."""
    draw = np.random.default_rng(0)
    number = draw.integers(0, 5, size=(400, 1))
    ids = np.concatenate([5 + number + 5 * draw.integers(0, 2, size=(400, 1)), 15 + number, 20 + number], axis=1)
    known, vectors, _ = word_vectors(positive_information(cooccurrences(packed(ids), 30, SPECIAL)[0]), 8, seed=0)
    assert known.tolist() == list(range(5, 25))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit[:5] @ unit[5:10].T
    assert np.diagonal(near).min() > 0.95
    assert (near - 2 * np.eye(5)).max() < 0.5
    assert vectors.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert vectors.std() == pytest.approx(1, abs=1e-5)


def test_equal_seeds_give_equal_vectors():
    ids = np.random.default_rng(0).integers(5, 40, size=(50, 12))
    information = positive_information(cooccurrences(packed(ids), 40, SPECIAL)[0])
    one, again, other = (word_vectors(information, 8, seed)[1] for seed in (1, 1, 2))
    assert (one == again).all()
    assert not (one == other).all()


def test_a_text_of_fewer_words_than_dimensions_is_refused():
    information = positive_information(cooccurrences(packed([[2, 5, 6, 7, 5, 3]]), 8, SPECIAL)[0])
    assert len(word_vectors(information, 2, 0)[0]) == 3
    with pytest.raises(EffptError, match=r"Only 3 tokens of the training text have neighbours, .* vectors of 3 dim"):
        word_vectors(information, 3, 0)
    without = positive_information(cooccurrences(packed([[2, 5, 3, 1, 0]]), 8, SPECIAL)[0])
    with pytest.raises(EffptError, match="Only 0 tokens of the training text have neighbours"):
        word_vectors(without, 3, 0)


def test_tokens_that_the_model_lacks_are_refused():
    with pytest.raises(EffptError, match=r"The rows have the token 9, but the vocabulary of the model has only 8"):
        cooccurrences(packed([[2, 5, 9, 3]]), 8, SPECIAL)


def test_flops_of_the_decomposition():
    """With 2 iterations and 10 more vectors than wanted: 4 * 3 * 1000 * 20 and 12 * 100 * 20 ** 2."""
    assert svd_flops(100, 1000, 10) == 240_000 + 480_000
