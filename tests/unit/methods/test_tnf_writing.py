"""The arithmetic of notes, by hand and against loops."""

import pytest
import torch

from hf_effpt.methods import TNF
from hf_effpt.methods.tnf.dictionary import NoteDictionary, NoteInputs
from hf_effpt.methods.tnf.lookup import (
    CONTINUATION,
    PAD,
    SPECIAL,
    START,
    Occurrences,
    occurrences_of,
    places_for,
    words_of,
)
from hf_effpt.methods.tnf.writing import take_in, window_means

# Tokens by kind: 0 padding, 1 special, 2 to 5 begin a word, 6 and 7 go on with one.
KINDS = torch.tensor([PAD, SPECIAL, START, START, START, START, CONTINUATION, CONTINUATION], dtype=torch.uint8)


def found_in(ids, entry):
    words = words_of(ids, KINDS)
    found, hits = occurrences_of(entry, words)
    return words, found, int(hits)


def means(ids, entry, hidden, k):
    words, found, hits = found_in(ids, entry)
    return window_means(hidden, found, words, k)[found.used_C], hits


HIDDEN = torch.tensor([[[1.0, 10], [2, 20], [4, 40], [8, 80], [16, 160], [32, 320]]])


@pytest.mark.parametrize(
    ("span", "mean"),
    [
        ((2, 3), (2 + 4) / 2),  # [s - k, t + k) is [1, 4) for the word at 2: 2, 4, 8
        ((1, 3), None),
        ((0, 1), None),
        ((4, 6), None),
    ],
)
def test_windows_are_half_open_and_clipped(span, mean):
    """k=1 and L=6: the window of [s, t) is [s - 1, t + 1), without what lies outside the row."""
    first, end = span
    ids = torch.full((1, 6), 2)
    ids[0, first + 1 : end] = 6
    entry = torch.full((1, 6), -1)
    entry[0, first:end] = 0
    got, hits = means(ids, entry, HIDDEN, k=1)
    window = HIDDEN[0, max(0, first - 1) : min(6, end + 1)]
    assert hits == 1
    assert torch.equal(got[0], window.sum(0) / len(window))


def test_the_hand_case():
    """The word at 2 has the neighbours 1 and 3: (2 + 4 + 8) / 3; the one at 3 to 4 shares two of them."""
    ids = torch.tensor([[1, 2, 3, 4, 6, 5]])
    entry = torch.tensor([[-1, -1, 0, 1, 1, -1]])
    got, _ = means(ids, entry, HIDDEN, k=1)
    expected = [[14 / 3, 140 / 3], [(4 + 8 + 16 + 32) / 4, (40 + 80 + 160 + 320) / 4]]
    assert torch.allclose(got, torch.tensor(expected), atol=1e-6)


def test_padding_on_either_side_is_left_out():
    for ids in ([0, 0, 2, 3, 2, 2], [2, 3, 2, 2, 0, 0]):
        ids = torch.tensor([ids])
        entry = torch.where(ids == 3, 0, -1)
        got, _ = means(ids, entry, HIDDEN, k=5)
        assert torch.allclose(got[0], HIDDEN[0][ids[0] != 0].mean(0))


def test_windows_equal_a_loop_also_from_bf16_outputs():
    """Running sums in bf16 would be far off."""
    torch.manual_seed(0)
    hidden = (torch.randn(3, 512, 8) + 1).bfloat16()
    ids = torch.randint(2, 6, (3, 512))
    entry = torch.where(torch.rand(3, 512) < 0.1, 0, -1)
    got, hits = means(ids, entry, hidden, k=16)
    places = (entry >= 0).nonzero().tolist()
    assert hits == len(places) > 100
    for mean, (row, at) in zip(got, places, strict=True):
        window = hidden[row, max(0, at - 16) : at + 17].double()
        assert torch.allclose(mean.double(), window.mean(0), atol=2e-5)


def write(vectors, entries, new, gamma=0.1, unused=0):
    entry = torch.tensor([*entries, *([0] * unused)])
    used = torch.arange(len(entry)) < len(entries)
    padded = torch.cat([new, torch.full((unused, new.shape[1]), 1e6)])
    return take_in(vectors, entry, used, padded, gamma)


def test_three_occurrences_by_hand():
    v, n = torch.tensor([[5.0, 7.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    before = v.clone()
    write(v, [0, 0, 0], n, unused=4)
    expected = 0.9**3 * before[0] + 0.1 * (0.81 * n[0] + 0.9 * n[1] + n[2])
    assert torch.allclose(v[0], expected, atol=1e-6)
    assert torch.equal(v[1], before[1])


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("unused", [0, 5])
def test_repeats_equal_one_after_the_other(gamma, unused):
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(20, 6, generator=generator)
    entries = torch.randint(0, 9, (70,), generator=generator).tolist()
    new = torch.randn(70, 6, generator=generator)
    expected = vectors.clone().double()
    drift, old = 0.0, vectors.clone()
    for entry, note in zip(entries, new.double(), strict=True):
        expected[entry] = (1 - gamma) * expected[entry] + gamma * note
    total, number = write(vectors, entries, new, gamma, unused)
    assert torch.allclose(vectors.double(), expected, atol=1e-5)
    assert torch.equal(vectors[9:], old[9:])
    changed = sorted(set(entries))
    drift = ((expected - old)[changed].norm(dim=1) / old[changed].norm(dim=1)).sum()
    assert number == len(changed)
    assert total == pytest.approx(float(drift), rel=1e-4)


def test_nothing_found_changes_nothing():
    vectors = torch.randn(4, 3)
    before = vectors.clone()
    total, number = write(vectors, [], torch.empty(0, 3), unused=6)
    assert torch.equal(vectors, before)
    assert total == number == 0


def test_more_words_than_places_are_counted_and_the_first_written():
    ids = torch.full((2, 512), 2)
    entry = torch.zeros(2, 512, dtype=torch.long)
    _, found, hits = found_in(ids, entry)
    assert places_for(1024) == 128 == len(found.entry_C)
    assert hits == 1024
    assert found.used_C.all()
    assert found.row_C.max() == 0
    assert places_for(10) == 10
    assert places_for(200) == 64


def dictionary(**settings):
    made = NoteDictionary(TNF(entries=2, **settings), 2, len(KINDS))
    made.vectors.copy_(torch.tensor([[3.0, 4.0], [30.0, 40.0]]))
    return made


@pytest.mark.parametrize("scale", ["none", "match"])
def test_blending_by_hand(scale):
    notes = dictionary(weight=0.25, scale=scale)
    ids = torch.tensor([[1, 2, 3, 6, 5, 1]])
    entry = torch.tensor([[-1, -1, 1, 1, -1, -1]])
    words, found, hits = found_in(ids, entry)
    notes._reading = reading = NoteInputs(entry, words, found, {})
    mixed = notes.blend(HIDDEN)
    assert hits == 1
    for at in (0, 1, 4, 5):
        assert torch.equal(mixed[0, at], HIDDEN[0, at])
    for at in (2, 3):
        note = torch.tensor([30.0, 40.0])
        if scale == "match":
            note = note / 50 * HIDDEN[0, at].norm()
        assert torch.allclose(mixed[0, at], 0.75 * HIDDEN[0, at] + 0.25 * note, atol=1e-5)
    ratio = 1 / 3 if scale == "match" else 0.25 * 50 / (0.75 * HIDDEN[0, 2].norm())
    assert float(reading.sums["tnf_ratio"]) == pytest.approx(float(ratio), rel=1e-5)


def test_vectors_stay_exact_when_the_model_is_cast():
    notes = dictionary()
    notes.vectors.add_(1e-4)
    before = notes.vectors.clone()
    for cast in (notes.bfloat16(), notes.half(), notes.to(torch.bfloat16)):
        assert cast.vectors.dtype is torch.float32
        assert torch.equal(cast.vectors, before)
    assert notes.double().vectors.dtype is torch.float32


def test_places_keep_the_order_of_occurrence():
    ids = torch.tensor([[1, 2, 2, 2, 2, 1], [1, 2, 2, 2, 2, 1]])
    entry = torch.tensor([[-1, 7, -1, 5, -1, -1], [-1, -1, 7, -1, -1, -1]])
    _, found, _ = found_in(ids, entry)
    assert isinstance(found, Occurrences)
    assert found.entry_C[found.used_C].tolist() == [7, 5, 7]
    assert found.row_C[found.used_C].tolist() == [0, 0, 1]
