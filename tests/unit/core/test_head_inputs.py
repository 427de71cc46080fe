"""A reading at fewer positions than answers are asked for."""

import pytest
import torch

from hf_effpt.core.head_inputs import HeadInputs

NONE = -100


def thinned(labels, number):
    """The answers at the positions that are left, for hidden states that say which position they are of."""
    labels_BM = torch.tensor(labels)
    places_BM1 = torch.arange(labels_BM.shape[1]).expand(labels_BM.shape)[..., None].float()
    found = HeadInputs(places_BM1, labels_BM, lambda hidden: (hidden, hidden)).subsample(number)
    for row, (places, answers) in enumerate(zip(found.hidden_BMD[..., 0].long(), found.labels_BM, strict=True)):
        assert torch.equal(labels_BM[row, places], answers)
    return found.labels_BM.tolist()


def test_positions_are_spread_over_those_asked_for():
    assert thinned([[5, 6, 7, 8, 9, 10]], 2) == [[6, 9]]
    assert thinned([[5, 6, 7, 8, 9, 10]], 3) == [[6, 8, 10]]
    assert thinned([[NONE, 5, NONE, 6, 7, 8]], 2) == [[6, 8]]


@pytest.mark.parametrize("number", [None, 3, 100])
def test_all_are_left_if_there_are_no_more(number):
    assert thinned([[5, 6, 7], [8, NONE, NONE]], number) == [[5, 6, 7], [8, NONE, NONE]]


def test_a_row_of_fewer_has_them_all_and_none_twice():
    assert thinned([[5, NONE, 6, NONE], [5, 6, 7, 8], [NONE] * 4], 3) == [[5, 6, NONE], [5, 7, 8], [NONE] * 3]
