from itertools import pairwise
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_effpt.data import row_builders
from hf_effpt.data.row_builders import IsolatedRows, StreamRows, best_fit
from hf_effpt.data.vocabulary import SpecialIds

IDS = SpecialIds(pad=0, cls=1, sep=2, mask=3)
LENGTHS = st.integers(8, 40)
# Lengths of documents, in the groups in which they arrive.
GROUPS = st.lists(st.lists(st.integers(1, 120), max_size=8), min_size=1, max_size=6)

# Tokens that arrive together; `None` for those of a group.
RUNS = st.sampled_from([None, 5, 1000])


def documents_of(groups: list[list[int]]) -> list[list[np.ndarray]]:
    """Documents of these lengths, in which every token is another number."""
    sizes = [size for group in groups for size in group]
    ends = 4 + np.cumsum(sizes, dtype=int)
    made = iter([np.arange(end - size, end, dtype=np.int32) for size, end in zip(sizes, ends, strict=True)])
    return [[next(made) for _ in group] for group in groups]


def build(builder, groups: list[list[np.ndarray]], run: int | None = None) -> dict[str, np.ndarray]:
    """Rows of documents that are added group by group, or in runs of so many tokens, whatever documents they end."""
    documents = [document for group in groups for document in group]
    tokens = np.concatenate([*documents, np.empty(0, int)])
    ends = np.cumsum([len(document) for document in documents], dtype=int)
    stops = np.cumsum([sum(map(len, group)) for group in groups], dtype=int)
    if run is not None:
        stops = np.append(np.arange(run, len(tokens), run), len(tokens))
    parts = []
    for start, stop in pairwise([0, *stops]):
        parts.append(builder.add(tokens[start:stop], ends[(ends > start) & (ends <= stop)] - start))
    parts.append(builder.finish())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@settings(deadline=None)
@given(GROUPS, LENGTHS, RUNS)
def test_stream_rows_hold_the_stream_in_order(groups, length, run):
    groups = documents_of(groups)
    packed = build(StreamRows(length, IDS, np.dtype(np.int32)), groups, run)["input_ids"]
    stream = [token for group in groups for document in group for token in [*document, IDS.sep]]
    inner = length - 2
    count = len(stream) // inner
    assert packed.shape == (count, length)
    assert (packed[:, 0] == IDS.cls).all()
    assert (packed[:, -1] == IDS.sep).all()
    assert packed[:, 1:-1].reshape(-1).tolist() == stream[: count * inner]


@settings(deadline=None)
@given(GROUPS, LENGTHS, RUNS, st.sampled_from([1, 2**19]))
def test_isolated_rows_hold_every_token_once(groups, length, run, block):
    groups = documents_of(groups)
    with patch.object(row_builders, "BLOCK_TOKENS", block):
        packed = build(IsolatedRows(length, IDS, np.dtype(np.int32)), groups, run)
        in_groups = build(IsolatedRows(length, IDS, np.dtype(np.int32)), groups)
    assert all((packed[name] == in_groups[name]).all() for name in packed)
    assert packed["input_ids"].shape == packed["document_ids"].shape
    assert packed["input_ids"].shape[1] == length
    pieces = []
    for tokens, numbers in zip(packed["input_ids"], packed["document_ids"].astype(int), strict=True):
        used = np.count_nonzero(numbers)
        assert used >= 3
        assert (numbers[used:] == 0).all()
        assert (tokens[used:] == IDS.pad).all()
        # 1, 1, 1, 2, 2, ...: the first piece is 1 and each next one counts on.
        assert numbers[0] == 1
        assert set(np.diff(numbers[:used])) <= {0, 1}
        for number in range(1, numbers.max() + 1):
            piece = tokens[numbers == number]
            assert (piece[0], piece[-1]) == (IDS.cls, IDS.sep)
            assert not np.isin(piece[1:-1], [IDS.cls, IDS.sep, IDS.pad]).any()
            pieces.append(piece[1:-1])
    # Tokens are numbered through, so sorted pieces of whole documents must give the numbers back.
    pieces.sort(key=lambda piece: piece[0])
    expected = [document for group in groups for document in group]
    joined = np.concatenate([*pieces, np.empty(0, int)])
    assert joined.tolist() == np.concatenate([*expected, np.empty(0, int)]).tolist()
    # Only the last piece of a document may be short, and none reaches into the next.
    cuts = [
        document[start : start + length - 2] for document in expected for start in range(0, len(document), length - 2)
    ]
    assert [piece.tolist() for piece in pieces] == [cut.tolist() for cut in cuts]


@given(st.lists(st.integers(3, 30), min_size=1, max_size=200))
def test_best_fit_places_without_overlap(sizes):
    sizes = np.array(sizes)
    row, offset, number, count = best_fit(sizes, 30)
    assert sorted(set(row)) == list(range(count))
    first = []
    for index in range(count):
        here = np.flatnonzero(row == index)
        first.append(here.min())
        inside = here[np.argsort(offset[here])]
        ends = [0, *np.cumsum(sizes[inside])]
        assert offset[inside].tolist() == ends[:-1]
        assert ends[-1] <= 30
        assert number[inside].tolist() == list(range(1, len(here) + 1))
    assert all(before < after for before, after in pairwise(first))
    # Best fit never opens a row while the piece fits in another one: at most one row can be half empty or emptier.
    filled = np.bincount(row, weights=sizes)
    assert np.count_nonzero(filled <= 15) <= 1


def test_isolated_rows_are_nearly_full():
    draw = np.random.default_rng(0)
    documents = [np.full(size, 9) for size in draw.lognormal(5.5, 1.0, 4000).astype(int) + 1]
    packed = build(IsolatedRows(128, IDS, np.dtype(np.uint16)), [documents])
    assert np.count_nonzero(packed["document_ids"]) / packed["document_ids"].size > 0.985


def test_document_ids_are_wide_enough():
    assert IsolatedRows(128, IDS, np.dtype(np.uint16)).document_dtype == np.uint8
    many = build(IsolatedRows(3 * 300, IDS, np.dtype(np.uint16)), [[np.array([9])] * 300])["document_ids"]
    assert many.max() == 300
