import math

import numpy as np
import pytest
from scipy import stats

from hf_effpt.comparison.statistics import Difference, crossing, holm, interval, paired, verdict


def by_seed(values):
    return dict(enumerate(values))


def test_interval_is_students():
    values = [1.0, 2.0, 4.0]
    found = interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((7 / 3, low, high))
    # half-widths of the mean paired difference in standard deviations at n = 3, 5, 8
    for n, width in ((3, 2.48), (5, 1.24), (8, 0.84)):
        sample = np.random.default_rng(n).normal(size=n)
        assert (interval(sample).high - interval(sample).mean) / np.std(sample, ddof=1) == pytest.approx(
            width, abs=6e-3
        )
    assert interval([5.0]).low is None
    assert interval([]) is None


def test_pairs_are_by_seed_and_not_by_order():
    arm, baseline = {2: 3.1, 0: 1.0, 1: 2.05}, {0: 1.1, 1: 2.1, 2: 3.2, 9: 100.0}
    found = paired(arm, baseline)
    expected = stats.ttest_rel([1.0, 2.05, 3.1], [1.1, 2.1, 3.2])
    assert found.n == 3
    assert found.mean == pytest.approx(-0.25 / 3)
    assert found.p == pytest.approx(expected.pvalue)


def test_fewer_than_three_pairs_say_nothing():
    assert paired(by_seed([1.0, 2.0]), by_seed([0.0, 0.0])) is None
    assert paired({0: 1.0, 1: 1.0, 2: 1.0}, {3: 1.0, 4: 1.0, 5: 1.0}) is None
    assert verdict(None)["label"] == "no verdict"


def test_arms_without_any_spread():
    same = paired(by_seed([1.0, 2.0, 3.0]), by_seed([1.0, 2.0, 3.0]))
    assert (same.mean, same.p) == (0.0, 1.0)
    shifted = paired(by_seed([1.5, 2.5, 3.5]), by_seed([1.0, 2.0, 3.0]))
    assert (shifted.mean, shifted.p) == (0.5, 0.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([0.2, 0.001, 0.01, 0.01])
    assert found == pytest.approx([0.2, 0.004, 0.03, 0.03])


@pytest.mark.parametrize("arms", [1, 3])
def test_false_positives_are_rare_when_nothing_differs(arms):
    """400 comparisons of equal arms: any arm declared better or worse is a false positive, and at most 20 are due."""
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        shared = generator.normal(6.0, 0.1, size=3)  # what a seed does to every arm
        baseline = by_seed(shared + generator.normal(0, 0.02, size=3))
        found = [paired(by_seed(shared + generator.normal(0, 0.02, size=3)), baseline) for _ in range(arms)]
        adjusted = holm([each.p for each in found])
        wrong += any(p < 0.05 for p in adjusted)
    assert wrong <= 33  # three standard deviations above
    assert wrong >= 4  # the test can be wrong at all


def test_a_known_effect_is_found_and_covered():
    """Intervals cover the true difference about 95 times in 100, and a large effect is seen."""
    generator = np.random.default_rng(1)
    covered = seen = 0
    for _ in range(1000):
        shared = generator.normal(6.0, 0.1, size=5)
        found = paired(by_seed(shared - 0.05 + generator.normal(0, 0.01, size=5)), by_seed(shared))
        covered += found.low <= -0.05 <= found.high
        seen += found.p < 0.05 and found.mean < 0
    assert 930 <= covered <= 970
    assert seen >= 990


def test_pairing_removes_what_seeds_share():
    generator = np.random.default_rng(2)
    shared = generator.normal(6.0, 1.0, size=5)
    found = paired(by_seed(shared - 0.05 + generator.normal(0, 0.005, size=5)), by_seed(shared))
    assert found.p < 0.01
    assert stats.ttest_ind(shared - 0.05, shared).pvalue > 0.5


def test_crossing_is_linear_in_the_logarithm_of_the_budget():
    losses = {50.0: 7.0, 100.0: 6.0}
    assert crossing(losses, 6.5) == (pytest.approx(math.sqrt(50 * 100)), None)
    assert crossing(losses, 6.0) == (pytest.approx(100.0), None)
    assert crossing(losses, 5.9) == (None, "not reached within the budget")
    budget, word = crossing(losses, 7.5)
    assert budget == 50.0
    assert "may need less" in word
    assert crossing({}, 1.0) == (None, "no finished runs")
    # half as far again, on the scale of logarithms
    assert crossing(losses, 5.5, beyond=True) == (pytest.approx(100 * 2**0.5), None)
    assert crossing(losses, 7.5, beyond=True) == (pytest.approx(50 * 2**-0.5), None)
    for times, reached in ((9, True), (11, False)):
        further = math.log2(times)
        assert (crossing(losses, 6.0 - further, beyond=True)[1] is None) == reached
        assert (crossing(losses, 7.0 + further, beyond=True)[1] is None) == reached
    assert crossing({100.0: 6.0}, 5.9, beyond=True) == (None, "not reached within the budget")
    assert crossing({50.0: 6.0, 100.0: 6.0}, 5.9, beyond=True) == (None, "not reached within the budget")
    # the first budget that reaches it counts, even where a longer run came out worse
    assert crossing({50.0: 7.0, 70.0: 6.4, 100.0: 6.6}, 6.5)[0] < 70


def test_verdicts_say_what_the_numbers_say():
    better = verdict(Difference(-0.05, -0.07, -0.03, 0.001, 3, 0.002))
    assert better["label"] == "better"
    assert "0.0500 nats lower" in better["text"]
    assert "p = 0.002 after Holm" in better["text"]
    assert verdict(Difference(0.05, 0.03, 0.07, 0.001, 3, 0.002))["label"] == "worse"
    # significant before the correction, not after
    assert verdict(Difference(-0.05, -0.09, -0.01, 0.03, 3, 0.06))["label"] == "no difference shown"
    assert verdict(Difference(-0.05, -0.09, -0.01, 0.03, 3, 0.06), "seed 1 diverged") == {
        "label": "no verdict",
        "text": "No verdict: seed 1 diverged.",
    }
