import hashlib
import random
import sys

import numpy as np
import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.data import PackedRows, corpus_of, facts, long_documents, pack
from hf_effpt.data.document_meter import content_keys, document_sizes
from hf_effpt.data.document_selection import (
    Kept,
    SelectSettings,
    alike_by_chance,
    apart,
    in_band,
    without_exact,
    without_near,
    without_semantic,
)
from hf_effpt.data.holding_out import held_out
from hf_effpt.data.long_documents import Part, in_parts


def words_of(documents):
    return sorted({word for text in documents for word in text.split()})


def with_words_changed(text, share, words, seed=0):
    """The text with a run of its words, so many in all, put in other places by others."""
    draw, changed = random.Random(seed), text.split()
    first = draw.randrange(len(changed) // 2)
    for place in range(first, first + round(share * len(changed))):
        changed[place] = draw.choice(words)
    return " ".join(changed)


def jaccard(left, right):
    sets = []
    for text in (left, right):
        words = text.lower().split()
        sets.append({tuple(words[first : first + 5]) for first in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_exact_doubles_go_whatever_their_case_and_white_space(documents):
    doubles = [documents[3], documents[5].upper(), "\n\t ".join(documents[7].split()), f"  {documents[3]} \n"]
    changed = documents[5] + " more"
    stays = without_exact([*documents, *doubles, changed])
    assert stays.tolist() == [True] * len(documents) + [False] * 4 + [True]


def test_near_doubles_go_and_the_first_stays(documents):
    words = words_of(documents)
    originals = [text for text in documents if len(text.split()) > 150][:12]
    near = [with_words_changed(text, 0.03, words, seed) for seed, text in enumerate(originals)]
    apart = [with_words_changed(text, 0.4, words, seed) for seed, text in enumerate(originals)]
    assert min(map(jaccard, originals, near)) > 0.89
    assert max(map(jaccard, originals, apart)) < 0.6
    stays = without_near([*originals, *near, *apart], 0.8)
    assert stays.tolist() == [True] * 12 + [False] * 12 + [True] * 12
    # From lower on, those that share half are doubles too.
    assert without_near([*originals, *near, *apart], 0.3).tolist() == [True] * 12 + [False] * 24


def test_near_doubles_of_text_without_spaces_are_found():
    """Three per cent of the characters differ, in a run; other documents share only characters."""
    draw = random.Random(3)
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 300)]
    originals = ["".join(draw.choices(signs, k=400)) + "。" for _ in range(8)]
    near = [text[:190] + "".join(draw.choices(signs, k=12)) + text[202:] for text in originals]
    assert without_near([*originals, *near], 0.8).tolist() == [True] * 8 + [False] * 8
    assert without_near([*originals, *(text[::-1] for text in originals)], 0.3).all()
    # With spaces, runs are of words, however long some are.
    assert without_near(["a b c d e " + "x" * 30, "a b c d e " + "y" * 30], 0.8).all()


def test_near_doubles_at_the_ends_of_similarity(documents):
    texts = [documents[0], documents[0].upper(), with_words_changed(documents[0], 0.03, words_of(documents))]
    assert without_near(texts, 1.0).tolist() == [True, False, True]
    assert without_near([*texts, "other words altogether are here"], 0.01).tolist() == [True, False, False, True]
    # Documents of fewer than five words are one run.
    assert without_near(["a b", "A  B", "a c", "a b c"], 0.8).tolist() == [True, False, True, True]


def test_doubles_of_held_out_documents_go_too(documents):
    held_out = [documents[0].upper(), "in neither", documents[3].replace(" ", "\n")]
    stays = [False, True, True, False, True, False]
    texts = [*documents[:5], documents[1]]
    assert without_exact(texts, held_out).tolist() == stays
    assert without_exact(in_parts(["z " * 100_000, "z"]), ["z " * 100_000]).tolist() == [False, True]
    held_out[2] += " and more"
    assert without_near(texts, 0.8, held_out).tolist() == stays
    assert without_near(texts, 0.8, []).tolist() == [True] * 5 + [False]


def test_semantic_doubles_of_held_out_documents_go_whichever_is_farther_from_the_centre():
    draw = np.random.default_rng(0)
    embeddings = draw.normal(size=(30, 8)).astype(np.float32)
    held_out = np.concatenate([embeddings[[4, 9]] * 3, draw.normal(size=(5, 8))])
    stays = without_semantic(embeddings, 0.9999, held_out)
    assert np.flatnonzero(~stays).tolist() == [4, 9]
    assert without_semantic(embeddings, 0.9999, held_out[2:]).all()


def test_a_long_document_is_looked_at_in_pieces(monkeypatch, documents):
    texts = [*documents[:8], documents[2] + " end"]
    whole = without_near(texts, 0.8)
    monkeypatch.setattr("hf_effpt.data.document_selection.SHINGLES_AT_ONCE", 7)
    assert without_near(texts, 0.8).tolist() == whole.tolist() == [True] * 8 + [False]


def test_choosing_moves_no_global_generator(documents):
    before = random.getstate(), np.random.get_state()[1].tolist()
    without_near(documents[:5], 0.8)
    without_semantic(np.random.default_rng(0).normal(size=(30, 4)), 0.95)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_near_without_datasketch_names_what_to_install(monkeypatch, documents):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(EffptError, match=r'pip install "hf_effpt\[dedup\]"`, or use `exact`'):
        without_near(documents, 0.8)


def test_semantic_doubles_go_and_the_farthest_from_the_centre_stays():
    draw = np.random.default_rng(0)
    topics = np.eye(8)[:4] * 10
    originals = topics[np.arange(40) % 4] + draw.normal(size=(40, 8)) * 3
    doubles = originals[:10] * draw.uniform(0.5, 2, size=(10, 1)) + draw.normal(size=(10, 8)) * 1e-3
    embeddings = np.concatenate([originals, doubles]).astype(np.float32)
    stays = without_semantic(embeddings, 0.9999)
    assert stays.sum() == 40
    assert (stays[:10] ^ stays[40:]).all()  # one of each pair
    assert without_semantic(embeddings, 0.9999).tolist() == stays.tolist()


def test_of_alike_documents_of_a_cluster_only_the_farthest_stays():
    angles = np.array([0.0, 0.1, 0.3, np.pi])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Towards the third, at 0.3, the others have cosines of 0.955 and 0.980.
    assert without_semantic(embeddings, 0.95).tolist() == [False, False, True, True]
    assert without_semantic(embeddings, 0.97).tolist() == [True, False, True, True]
    assert without_semantic(embeddings, 0.999).tolist() == [True] * 4


def test_a_document_like_one_that_goes_goes_too():
    """In a chain of documents, each like the next, only the farthest stays, as in the published pseudo-code."""
    angles = np.array([0.0, 0.15, 0.3, 0.45, 2.0])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    alike = np.triu(embeddings @ embeddings.T, 1).max(axis=0) > 0.985  # neighbours have 0.989, the next but one 0.955
    stays = apart(embeddings, 0.985)
    assert stays.tolist() == (~alike).tolist() == [True, False, False, False, True]


def test_of_equal_embeddings_the_first_stays():
    assert without_semantic(np.ones((9, 3), np.float32), 0.95).tolist() == [True] + [False] * 8
    assert without_semantic(np.ones((1, 3), np.float32), 0.95).tolist() == [True]


def test_how_alike_documents_are_by_chance_is_a_share_of_pairs_of_two():
    angles = np.array([0.0, 0.1, np.pi / 2, np.pi])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1.0], [5.0], [0.3], [2.0]])
    assert alike_by_chance(embeddings, 0.95) == pytest.approx(1 / 6, abs=0.01)
    assert alike_by_chance(np.ones((9, 3)), 0.95) == 1.0
    assert alike_by_chance(np.zeros((9, 3)), 0.95) == 0.0
    assert alike_by_chance(np.ones((1, 3)), 0.95) == 0.0


@pytest.mark.parametrize(
    ("band", "kept"), [("low", [1, 2, 4]), ("middle", [0, 2, 4]), ("high", [0, 5, 6])]
)  # fmt: skip
def test_a_band_of_the_losses_stays(band, kept):
    losses = np.array([4.0, 1.0, 2.0, np.nan, 3.0, 6.0, 5.0])
    assert np.flatnonzero(in_band(losses, 0.5, band)).tolist() == kept


def test_of_equal_losses_the_first_document_is_the_lower():
    assert np.flatnonzero(in_band(np.ones(4), 0.5, "low")).tolist() == [0, 1]
    assert np.flatnonzero(in_band(np.ones(4), 0.5, "high")).tolist() == [2, 3]
    assert not in_band(np.full(4, np.nan), 0.5, "low").any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"`data\.select` is {}, which selects nothing"),
        ({"model": "m"}, "which selects nothing"),
        ({"deduplicate": "fuzzy"}, "deduplicate` is 'fuzzy', but must be exact, near or semantic"),
        ({"deduplicate": "exact", "similarity": 0.8}, "similarity` is 0.8, .* only with `deduplicate` `near` or"),
        ({"deduplicate": "near", "similarity": 0.0}, "similarity` is 0.0, but must be above 0 and at most 1"),
        ({"deduplicate": "near", "similarity": 1.1}, "similarity` is 1.1, but must be above 0 and at most 1"),
        ({"deduplicate": "semantic", "model": "m", "similarity": 1.0}, "must be below 1 for `deduplicate: semantic`"),
        (
            {"deduplicate": "semantic"},
            "model` is None, but must be the folder .*`deduplicate: semantic` judges",
        ),
        ({"deduplicate": "near", "model": "m"}, "model` is 'm', .* only with `deduplicate` `semantic` or with"),
        ({"keep": 0.5, "model": "m"}, "band` is None, but must be one of low, middle, high.*depends on the data"),
        ({"keep": 0.5, "model": "m", "band": "best"}, "band` is 'best', but must be one of low, middle, high"),
        ({"keep": 0.5, "band": "low"}, "model` is None, but must be the folder .* which `keep` judges"),
        ({"band": "low", "model": "m"}, "keep` is None, but must be given with `band`"),
        ({"keep": 1.0, "band": "low", "model": "m"}, "keep` is 1.0, but must be above 0 and below 1"),
        ({"keep": 0.0, "band": "low", "model": "m"}, "keep` is 0.0, but must be above 0 and below 1"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(EffptError, match=message):
        SelectSettings(**settings)


def test_usual_similarities_are_said():
    assert SelectSettings(deduplicate="near").settings() == {"deduplicate": "near", "similarity": 0.8}
    assert SelectSettings(deduplicate="semantic", model="m").similarity == 0.95
    assert SelectSettings(deduplicate="exact").settings() == {"deduplicate": "exact"}


@pytest.mark.parametrize("isolate", [False, True])
def test_packed_are_the_kept_documents_and_what_is_held_out_stays(tokenizer, documents, isolate):
    corpus = corpus_of(documents)
    chosen = np.arange(len(documents)) % 3 != 0
    settings = {"sequence_length": 32, "isolate_documents": isolate, "validation": 0.2}
    whole = pack(corpus, tokenizer, **settings)
    kept = pack(corpus, tokenizer, kept=Kept(chosen, {"documents": 50}), **settings)
    assert kept["validation"]["input_ids"][:] == whole["validation"]["input_ids"][:]
    aside = held_out(lambda: [document_sizes(documents)], 0.2)
    left = corpus_of([text for text, one in zip(documents, chosen & ~aside, strict=True) if one])
    expected = pack(left, tokenizer, **{**settings, "validation": None})["train"]
    assert kept["train"]["input_ids"][:] == expected["input_ids"][:]
    assert facts(kept["train"])["documents"] == (chosen & ~aside).sum()
    assert facts(kept["train"])["select"] == {
        "documents": 50,
        "unselected_fingerprint": facts(whole["train"])["fingerprint"],
    }
    assert "select" not in facts(kept["validation"])
    assert "select" not in facts(whole["train"])


def test_a_share_that_holds_out_no_row_is_raised_alike_with_and_without(tokenizer, documents):
    settings = {"sequence_length": 32, "validation": 0.0001}
    whole = pack(corpus_of(documents[:6]), tokenizer, **settings)
    kept = pack(corpus_of(documents[:6]), tokenizer, kept=Kept(np.array([True, False] * 3)), **settings)
    assert kept["validation"]["input_ids"][:] == whole["validation"]["input_ids"][:]
    assert len(kept["train"]) < len(whole["train"])


def test_a_validation_corpus_of_its_own_is_not_selected_from(tokenizer, documents):
    settings = {"sequence_length": 32, "validation": corpus_of(documents[40:])}
    chosen = np.arange(40) < 20
    kept = pack(corpus_of(documents[:40]), tokenizer, kept=Kept(chosen), **settings)
    assert facts(kept["train"])["documents"] == 20
    assert facts(kept["validation"])["documents"] == 20


def test_rows_are_kept_by_which_documents_and_told_how_they_were_chosen(tokenizer, documents):
    chosen = np.arange(len(documents)) < 30
    first, second, other = (
        pack(corpus_of(documents), tokenizer, kept=Kept(choice, {"by": by}))["train"]
        for choice, by in ((chosen, "a"), (chosen.copy(), "b"), (~chosen, "a"))
    )
    assert facts(first)["fingerprint"] == facts(second)["fingerprint"] != facts(other)["fingerprint"]
    assert [facts(one)["select"]["by"] for one in (first, second, other)] == ["a", "b", "a"]
    assert len(PackedRows(first)) == facts(first)["rows"]


@pytest.mark.parametrize("number", [0, 59, 61])
def test_a_choice_among_other_documents_is_refused(tokenizer, documents, number):
    with pytest.raises(EffptError, match=f"has 60 documents, but `kept` says of {number} which"):
        pack(corpus_of(documents), tokenizer, kept=Kept(np.ones(number, bool)))


def test_too_few_kept_for_a_row(tokenizer):
    texts = ["a b c d e f g"] * 30
    with pytest.raises(EffptError, match=r"train on, of the 1 documents .* less strictly by data\.select"):
        pack(corpus_of(texts), tokenizer, validation=None, kept=Kept(np.arange(30) == 0))


def unspaced(seed, size, first=0x4E00):
    draw = random.Random(seed)
    return "".join(chr(first + draw.randrange(900)) for _ in range(size))


def wrapped(text, width):
    return "\n".join(text[first : first + width] for first in range(0, len(text), width))


@pytest.mark.parametrize("first", [0x4E00, 0x0E01 - 0x20, 0x30000], ids=["Chinese", "mostly Thai", "Extension G"])
def test_near_doubles_in_short_lines_are_found_in_scripts_without_spaces(first):
    text = (
        unspaced(1, 500, first)
        if first != 0x0E01 - 0x20
        else "".join(chr(0x0E01 + ord(c) % 46) for c in unspaced(1, 500))
    )
    other = unspaced(2, 500, first)
    texts = [wrapped(text, 9), wrapped(text, 8), other, f"a title 2026\n{text}"]
    assert without_near(texts, 0.8).tolist() == [True, False, True, False]


def test_documents_in_parts_are_compared_as_whole_ones(monkeypatch):
    """Long lines are: with spaces, and without, where a part may end anywhere."""
    monkeypatch.setattr(long_documents, "PART_CHARACTERS", 2**10)
    words = " ".join(f"w{number % 941}" for number in range(1300))
    signs = unspaced(3, 4500)
    texts = [words, "\n " + words.upper(), words[:100], signs, " \n" + signs + "\n", signs[:100]]
    kept = [True, False, True, True, False, True]
    parts = [*in_parts(texts)]
    assert len(parts) > len(texts) + 4
    for rule in (without_exact, lambda texts, held_out=(): without_near(texts, 0.8, held_out)):
        assert rule(parts).tolist() == kept
        assert rule(in_parts(texts[2:4]), in_parts([texts[4]])).tolist() == [True, False]


def test_content_keys_do_not_depend_on_where_documents_are_cut():
    def keys(*parts):
        return content_keys([*map(Part, parts[:-1]), parts[-1]]).tolist()

    assert keys("\u4e00\u4e8c", "\u4e09") == keys("\u4e00", "\u4e8c\u4e09") == keys("\u4e00\u4e8c\u4e09 \n")
    assert keys("a b", " c") == keys("a ", "b c") == keys("A", " \n ", "b", "", " C") == keys("a b c")
    assert keys("a b", "c") == keys("a bc") != keys("a b c")
    assert keys(" ", "a") == keys("a")
    # As older versions have it, whose keys are in caches.
    assert keys("some Words") == [int.from_bytes(hashlib.blake2b(b"some words ", digest_size=8).digest(), "little")]
