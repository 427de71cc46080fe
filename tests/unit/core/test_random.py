import numpy as np

from hf_effpt.core.random import fold, indexed, mix


def test_mix_is_splitmix64():
    # The first outputs of the reference generator started at 0, whose state grows by the golden ratio each step.
    golden = 0x9E3779B97F4A7C15
    states = np.array([0, golden, 2 * golden % 2**64], np.uint64)
    assert [hex(value) for value in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_mix_leaves_its_input_alone():
    states = np.arange(4, dtype=np.uint64)
    mix(states)
    assert states.tolist() == [0, 1, 2, 3]


def test_fold_tells_parts_and_their_order_apart():
    keys = {int(fold(*parts)[0]) for parts in [(1, 2), (2, 1), (1, 3), (0, 1, 2), (-1, 2)]}
    assert len(keys) == 5


def test_fold_of_an_array_is_that_of_each_number():
    several = fold(7, np.arange(5))
    assert several.tolist() == [int(fold(7, number)[0]) for number in range(5)]


def test_uniform_is_uniform():
    drawn = indexed(np.arange(20_000), seed=3)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 200
