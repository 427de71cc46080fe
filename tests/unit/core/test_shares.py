import numpy as np
import pytest
import torch

from hf_effpt.core.shares import first_step, part_of


@pytest.mark.parametrize(
    ("share", "whole", "part"),
    [
        (2 / 3, 12, 8), (2 / 3, 16, 11), (0.4, 12, 5), (0.5, 5, 2), (0.5, 7, 4), (0.0, 9, 0), (1.0, 9, 9),
        (0.575, 100, 58), (0.145, 100, 14), (1 / 0.3, 3, 10),
    ],
)  # fmt: skip
def test_a_share_is_the_nearest_whole_number_and_of_two_the_even_one(share, whole, part):
    assert part_of(share, whole) == part


def test_the_rule_is_that_of_numpy_and_torch():
    halves = [number / 2 for number in range(20)]
    found = [part_of(0.5, number) for number in range(20)]
    assert found == np.rint(halves).tolist() == torch.tensor(halves).round().tolist()


def test_a_part_may_have_a_least():
    assert [part_of(0.01, 8), part_of(0.01, 8, least=1), part_of(0.5, 8, least=1)] == [0, 1, 4]


@pytest.mark.parametrize(
    ("share", "budget"), [(0.07, 100), (0.3, 10), (0.29, 100), (0.5, 7), (0.0, 9), (1 / 3, 3), (0.125, 1000)]
)
def test_the_first_step_at_a_share_is_the_first_whose_fraction_reaches_it(share, budget):
    step = first_step(share, budget)
    assert step / budget >= share - 1e-12
    assert step == 0 or (step - 1) / budget < share
