"""Which words TNF counts and finds, against plain Python."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_effpt.core.document_layout import DocumentLayout
from hf_effpt.core.errors import EffptError
from hf_effpt.data.words import word_edges
from hf_effpt.methods import TNF
from hf_effpt.methods.tnf import counting, lookup
from hf_effpt.methods.tnf.counting import bounds_for, choose_words, count_words
from hf_effpt.methods.tnf.lookup import (
    CONTINUATION,
    SPECIAL,
    START,
    documents_in,
    entries_of,
    hashes_of,
    kinds_of,
    occurrences_of,
    words_of,
)
from hf_effpt.models.document_blocks import DocumentMask
from hf_effpt.models.encoder_inputs import isolate_documents, mask_for, positions_within
from tests import tiny
from tests.unit.data.test_words import bytes_only

from . import notes
from .notes import CLS, CONTINUATIONS, MASK, PAD, SEP, STARTS, UNK


def random_rows(seed, number=40, length=24, masks=True):
    generator = np.random.default_rng(seed)
    ids = generator.integers(STARTS[0], STARTS[0] + 8, (number, length))
    tails = generator.random((number, length)) < 0.45
    ids[tails] = generator.integers(CONTINUATIONS[0], CONTINUATIONS[0] + 4, tails.sum())
    for token, share in ((SEP, 0.05), (UNK, 0.05), *(((MASK, 0.1),) if masks else ())):
        ids[generator.random((number, length)) < share] = token
    ids[:, 0] = CLS
    ids[generator.random(number) < 0.7, -1] = SEP
    for row in range(0, number, 5):
        ids[row, generator.integers(length // 2, length) :] = PAD
    return ids


def words_in(row):
    """(first, end, tokens) of the whole words of a packed row, one token after the other."""
    found, current = [], None
    for place, token in enumerate([*row, PAD]):
        goes_on = token in CONTINUATIONS or token == MASK
        if current is not None and not goes_on:
            found.append((current, place, tuple(row[current:place])))
            current = None
        if token in STARTS:
            current = place
    cut_at = len(row) - (row[-1] in (UNK, CLS, SEP))
    return [word for word in found if PAD in row or word[1] < cut_at]


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_python_dictionary(seed, monkeypatch):
    monkeypatch.setattr(counting, "CHUNK", 50)  # so that counts are merged several times
    rows = random_rows(seed, masks=False)
    kinds = kinds_of(notes.text(rows), tiny.VOCAB)
    keys, counts = count_words(notes.batches(rows, 7), kinds)
    expected = Counter(word for row in rows.tolist() for _, _, word in words_in(row))
    assert (np.diff(keys) > 0).all()
    assert sorted(counts) == sorted(expected.values())
    for word, count in expected.items():
        alone = torch.tensor([[CLS, *word, 5, SEP]])
        key = hashes_of(alone, words_of(alone, kinds))[0, 1].item()
        assert counts[np.searchsorted(keys, key)] == count, word


@pytest.mark.parametrize("seed", range(4))
def test_look_up_is_that_of_a_python_dictionary(seed):
    """Masks anywhere in a word, cut words at both ends, padding, unknown words: no hit but on whole words."""
    rows = random_rows(seed)
    kinds = kinds_of(notes.text(rows), tiny.VOCAB)
    both = [{"input_ids": random_rows(seed + more, masks=False)} for more in (0, 50)]
    keys, counts = count_words(both, kinds)
    chosen = torch.from_numpy(keys[counts <= np.median(counts)])
    ids = torch.from_numpy(rows)
    words = words_of(ids, kinds)
    entries = entries_of(ids, words, chosen)
    expected = torch.full_like(ids, -1)
    for number, row in enumerate(rows.tolist()):
        for first, end, word in words_in(row):
            if MASK in word:
                continue
            alone = torch.tensor([[CLS, *word, 5, SEP]])
            expected[number, first:end] = entries_of(alone, words_of(alone, kinds), chosen)[0, 1]
    assert 0.05 < (expected >= 0).double().mean() < 0.9
    assert torch.equal(entries, expected)
    found, hits = occurrences_of(entries, words)
    assert hits == found.used_C.sum() > 0
    spans = [
        (row, first, end)
        for row in range(len(rows))
        for first, end, _ in words_in(rows[row])
        if entries[row, first] >= 0
    ]
    places = torch.stack([found.row_C, found.first_C, found.end_C], dim=1)[found.used_C]
    assert [tuple(place) for place in places.tolist()] == spans


@pytest.mark.parametrize("token", [0, 1, 2])
def test_masking_any_sub_word_kills_the_hit(token):
    dictionary = notes.model().backbone.notes
    ids = notes.batch(((6,), (60, 100, 101), (7, 80)))
    assert (notes.looked_up(dictionary, ids)[0, 2:5] >= 0).all()
    ids[0, 2 + token] = MASK
    assert (notes.looked_up(dictionary, ids) < 0).all()


def test_a_mask_after_a_word_may_be_more_of_it():
    dictionary = notes.model().backbone.notes
    ids = notes.batch(((61,), (6,), (8,)))
    assert (notes.looked_up(dictionary, ids)[0, 1] >= 0).all()
    ids[0, 2] = MASK
    assert (notes.looked_up(dictionary, ids) < 0).all()


def test_a_prefix_or_another_order_is_another_word():
    dictionary = notes.model().backbone.notes
    for word in ((60,), (60, 100), (60, 101, 100), (60, 100, 101, 101), (63, 100, 101), (101, 100)):
        assert (notes.looked_up(dictionary, notes.batch(((6,), word))) < 0).all(), word


def test_the_last_word_of_a_row_may_be_cut():
    kinds = kinds_of(notes.text([notes.row()]), tiny.VOCAB)
    for row, whole in (
        ([CLS, 5, 6, SEP], [False, True, False, False]),  # 6 may go on in the next row
        ([CLS, 5, 6, 7], [False, True, True, False]),
        ([CLS, 5, 6, 70], [False, True, False, False]),
        ([CLS, 70, 6, SEP], [False, False, False, False]),  # 70 goes on with a word of the row before
        ([CLS, 5, SEP, PAD], [False, True, False, False]),
    ):
        assert words_of(torch.tensor([row]), kinds).whole_BL[0].tolist() == whole, row


@pytest.mark.parametrize(
    ("row", "documents", "whole"),
    [
        ([CLS, 5, SEP, CLS, 6, SEP], [1, 1, 1, 2, 2, 2], [False, True, False, False, True, False]),
        ([5, 6, 70, 7], [1, 1, 2, 2], [True, True, False, True]),  # 70 goes on with no word of its document
        ([5, MASK, 6, 7], [1, 2, 2, 2], [True, False, True, True]),  # nor does the mask hide a part of one
        ([CLS, 5, 6, SEP], [1, 1, 1, 1], [False, True, False, False]),  # a document that fills the row may be cut
        ([CLS, 5, 6, 9], [1, 1, 1, 0], [False, True, True, False]),  # 9 is padding, by the mask
    ],
)
def test_words_end_with_their_document(row, documents, whole):
    kinds = kinds_of(notes.text([notes.row()]), tiny.VOCAB)
    words = words_of(torch.tensor([row]), kinds, torch.tensor([documents]))
    assert (words.whole_BL[0] & torch.tensor(documents).bool()).tolist() == whole
    for place, document in enumerate(documents):
        same = [at for at, other in enumerate(documents) if other == document]
        assert (words.text_first_BL[0, place], words.text_end_BL[0, place]) == (same[0], same[-1] + 1)


def test_no_word_of_an_example_is_cut():
    kinds = kinds_of(notes.text([notes.row()]), tiny.VOCAB)
    for row in ([CLS, 5, 6, SEP], [CLS, 5, 6, 6]):
        whole = words_of(torch.tensor([row]), kinds, packed=False).whole_BL[0]
        assert whole.tolist() == [token in STARTS for token in row]


@pytest.mark.parametrize("additive", [False, True])
def test_documents_are_read_from_the_attention_mask(additive):
    """The numbers are those of `isolate_documents`, up to a name."""
    given = torch.tensor([[1, 1, 2, 3, 3, 3, 0, 0], [1] * 8])
    config = tiny.config(attn_implementation="eager" if additive else "sdpa")
    mask = mask_for(isolate_documents(given), config, torch.float32)
    found = documents_in(mask)
    assert torch.equal(documents_in({"full_attention": mask, "sliding_attention": None}), found)
    assert torch.equal(found.diff(dim=1) != 0, given.diff(dim=1) != 0)
    padding = (given != 0).long()
    assert torch.equal(documents_in(padding), padding)
    assert documents_in(None) is None
    unwritten = DocumentMask.make(given, DocumentLayout.of(given))
    assert torch.equal(documents_in(unwritten), given)
    assert torch.equal(documents_in(None, positions_within(given)), found)  # flash attention has no mask


def test_a_closed_word_does_not_go_on():
    """41 stands for punctuation; 70 after it begins a word, and 71 ends one with punctuation."""
    text = notes.text([notes.row()])
    text.words.closes[[41, 71]] = True
    kinds = kinds_of(text, tiny.VOCAB)
    row = [CLS, 5, 70, 41, 70, 72, 71, 70, 41, MASK, 6, SEP, PAD]
    words = words_of(torch.tensor([row]), kinds)
    spans = {(int(first), int(end)) for first, end in zip(words.first_BL[0], words.end_BL[0], strict=True)}
    assert spans == {(0, 1), (1, 3), (3, 4), (4, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12), (12, 13)}
    starts = [place for place in range(13) if words.whole_BL[0, place] and words.first_BL[0, place] == place]
    assert starts == [1, 3, 4, 7, 8, 10]


@pytest.mark.parametrize("starts", [1, 3])
def test_words_are_counted_within_the_documents_that_they_are_looked_up_in(starts):
    """Full rows of short documents, whose last word is not cut off; one begins with a continuation."""
    documents = [[notes.CLS, 20, 100, notes.SEP], [notes.CLS, 30, 31, notes.SEP], [notes.CLS, 101, 40, notes.SEP]]
    rows = np.array([[*documents[row % starts], *documents[2], *documents[1]] for row in range(6)])
    numbers = np.repeat([[1, 2, 3]], 4, axis=1).repeat(6, axis=0)
    kinds = kinds_of(notes.text(rows), tiny.VOCAB)
    keys, counts = count_words(notes.batches(rows, 2, numbers), kinds)
    ids, isolated = torch.from_numpy(rows), torch.from_numpy(numbers)
    words = words_of(ids, kinds, isolated)
    seen = hashes_of(ids, words)[words.whole_BL & (words.first_BL == torch.arange(12))]
    assert np.array_equal(np.repeat(keys, counts), np.sort(seen.numpy()))
    # Of the last document of a row, too, which packed text without documents would cut off.
    alone = torch.tensor([[notes.CLS, 31, notes.SEP, 0]])
    key = hashes_of(alone, words_of(alone, kinds))[0, 1].item()
    assert counts[keys.tolist().index(key)] == 6 + 6 // starts * (starts > 1)


def test_words_are_those_of_the_tokenizer_where_bytes_spell_them():
    tokenizer = bytes_only(("Ģ", "Ķ"))
    edges = word_edges(tokenizer)
    text = SimpleNamespace(words=edges, specials=range(5), mask=MASK, pad=PAD)
    kinds = kinds_of(text, len(tokenizer) + 3)
    ids = torch.tensor([tokenizer(" one\u2014two\u4e2d\u6587\u00e9 \u2026x")["input_ids"]])
    words = words_of(ids, kinds, packed=False)
    assert torch.equal(words.first_BL[0].diff() == 0, torch.from_numpy(edges.joined(ids.numpy()))[0, 1:])
    assert words.whole_BL.all()
    # A dash of which a part is masked is no dash.
    ids[0, ids[0].tolist().index(tokenizer.convert_tokens_to_ids("ĢĶ"))] = MASK
    assert words_of(ids, kinds, packed=False).first_BL[0, :9].tolist() == [0] * 9


def test_kinds_of_older_checkpoints_keep_their_numbers(tmp_path):
    assert (START, CONTINUATION, lookup.MASK, SPECIAL, lookup.PAD) == tuple(range(5))
    model = notes.model().eval()
    plain = torch.tensor(notes.rows())
    found = notes.looked_up(model.bert.notes, plain)
    state = model.state_dict()
    model.save_pretrained(
        tmp_path, state_dict={**state, "bert.notes.kinds": state["bert.notes.kinds"].to(torch.uint8)}
    )
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(notes.looked_up(loaded.bert.notes, plain), found)
    assert (found >= 0).any()
    loaded.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    again.load_state_dict(state)
    assert again.bert.notes.kinds.tolist() == model.bert.notes.kinds.tolist()


def test_hashes_of_many_words_differ():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.full((30_000,), 1, dtype=torch.uint8)
    kinds[:15_000] = 0
    starts, tails = (torch.randint(first, first + 15_000, (200_000, 2), generator=generator) for first in (0, 15_000))
    ids = torch.cat([starts[:, :1], tails], dim=1).unique(dim=0)
    assert len(hashes_of(ids, words_of(ids, kinds))[:, 0].unique()) == len(ids) > 199_000


def test_bounds_follow_the_size_of_the_text():
    assert bounds_for(3_470_000_000, None, None) == (101, 505)
    assert bounds_for(100_000_000, None, None) == (5, 25)
    assert bounds_for(100_000_000, 3, None) == (3, 15)
    assert bounds_for(100_000_000, None, 4) == (4, 4)
    assert bounds_for(100, 7, 9) == (7, 9)


def test_the_cap_keeps_the_more_frequent_words():
    keys, counts = np.array([10, 20, 30, 40, 50]), np.array([5, 6, 5, 7, 99])
    assert choose_words(keys, counts, 5, 9, 10).tolist() == [10, 20, 30, 40]
    assert choose_words(keys, counts, 5, 9, 3).tolist() == [10, 20, 40]
    assert choose_words(keys, counts, 5, 9, 1).tolist() == [40]


@pytest.mark.parametrize(("least", "most", "what"), [(1000, 2000, "no word"), (1, 1000, "every word")])
def test_bounds_that_part_nothing_are_refused_with_ones_that_do(least, most, what):
    keys, counts = np.arange(8), np.array([1, 1, 2, 3, 3, 7, 40, 40])
    with pytest.raises(
        EffptError, match=f"{what} of this text.*occur 1 to 40 times.*`min_count: 2` and `max_count: 3`"
    ):
        choose_words(keys, counts, least, most, 10)
    assert len(choose_words(keys, counts, 2, 3, 10)) == 3


def test_text_without_rare_words_is_refused_when_it_is_counted():
    model = tiny.model({"tnf": {"min_count": 1000}})
    with pytest.raises(EffptError, match="occur 1000 to 5000 times"):
        notes.prepare(model)
    with pytest.raises(EffptError, match="all words are equally frequent"):
        choose_words(np.arange(3), np.array([4, 4, 4]), 1, 9, 10)
    with pytest.raises(EffptError, match="no whole words"):
        TNF().prepare(model.backbone, notes.context(notes.text([[CLS, 5, SEP]])))
