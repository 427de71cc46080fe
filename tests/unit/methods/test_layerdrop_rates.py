"""How the rate of LayerDrop goes with place and time: published means, groups, and positions in the order."""

import numpy as np
import pytest

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import set_order, stack_of
from hf_effpt.methods import LayerDrop
from hf_effpt.methods.layerdrop.schedules import SCHEDULES
from tests import tiny


@pytest.mark.parametrize(("rate", "p"), [("constant", 0.2), ("pld", 0.5), ("progressive", 0.5)])
def test_p_is_a_number_whatever_is_set(rate, p):
    """Other methods compare it."""
    assert LayerDrop(rate=rate).p == p
    assert LayerDrop(rate=rate, p=0.1).p == 0.1


def test_pld_ends_with_three_quarters_of_the_layers():
    """(3L - 1) / 4 active layers at a floor of one half (Kaddour et al., 2023, `layer_drop.py` and its test)."""
    method = LayerDrop(rate="pld")
    for depth in (4, 12, 24):
        assert depth - method.rates(depth, 1.0).sum() == pytest.approx((3 * depth - 1) / 4)
    drawn = [12 - len(method.draw(12, step, seed=3, progress=1.0)) for step in range(4000)]
    assert np.mean(drawn) == pytest.approx((3 * 12 - 1) / 4, abs=0.08)


def test_pld_begins_with_all_layers_and_drops_the_upper_ones_more():
    method = LayerDrop(rate="pld", p=0.4)
    assert method.rates(12, 0.0).tolist() == [0.0] * 12
    # theta(t) = (1 - theta) exp(-gamma t) + theta, gamma = 100 / T; layer i is dropped with (i / L) (1 - theta(t))
    theta = (1 - 0.6) * np.exp(-100 * 0.01) + 0.6
    np.testing.assert_allclose(method.rates(12, 0.01), [i / 12 * (1 - theta) for i in range(1, 13)])
    assert np.all(np.diff(method.rates(12, 1.0)) > 0)


def test_progressive_subnetworks_have_6_8_10_and_12_of_12_layers():
    method = LayerDrop(rate="progressive")
    stages = [12 - method.rates(12, progress).sum() for progress in (0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1.0)]
    assert stages == pytest.approx([6, 6, 8, 10, 10, 12, 12])
    drawn = [12 - len(method.draw(12, step, seed=3)) for step in range(4000)]
    assert np.mean(drawn) == pytest.approx(6, abs=0.08)


def test_progressive_subnetworks_always_have_their_ends():
    method = LayerDrop(rate="progressive", p=0.8)
    for step in range(300):
        assert not {0, 11} & method.draw(12, step, seed=1)


@pytest.mark.parametrize("rate", list(SCHEDULES))
def test_rates_are_probabilities(rate):
    for depth in range(1, 26):
        for progress in np.linspace(0, 1, 9):
            rates = SCHEDULES[rate](0.7, depth, progress)
            assert rates.shape == (depth,)
            assert np.all((rates >= 0) & (rates <= 1))


def test_progress_counts_from_the_start():
    model = tiny.model({"layerdrop": {"rate": "progressive", "p": 0.5, "after": 0.6}}).train()
    (method,) = model.methods
    active = {fraction: [] for fraction in (0.59, 0.6, 0.95)}
    for fraction, seen in active.items():
        for step in range(50):
            method.schedule(model.bert, RunContext(step, fraction, seed=1))
            seen.append(len(stack_of(model.bert).active))
    assert set(active[0.59]) == {4}  # not yet
    assert set(active[0.6]) == {2}  # at p = 0.5 of four layers, the two that always run
    assert set(active[0.95]) == {4}  # the last stage has all of them


def test_a_group_shares_one_draw():
    method = LayerDrop(p=0.5, group=3)
    draws = [method.draw(12, step, seed=1) for step in range(400)]
    for dropped in draws:
        assert all(len({index in dropped for index in range(start, start + 3)}) == 1 for start in range(0, 12, 3))
    assert len({tuple(sorted(dropped)) for dropped in draws}) == 2**4
    assert np.mean([len(dropped) for dropped in draws]) == pytest.approx(6, abs=0.5)
    progressive = LayerDrop(rate="progressive", group=2)
    assert (12 - progressive.rates(12, 0.0).sum()) == pytest.approx(6)
    assert progressive.rates(12, 0.0)[[0, 1, 10, 11]].tolist() == [0.0] * 4


def test_draws_are_by_position_in_the_order():
    """After some growths the layer at a position has another index."""
    model = tiny.model({"layerdrop": {"rate": "progressive"}}).train()
    (method,) = model.methods
    set_order(model.bert, [2, 0, 3, 1])
    method.schedule(model.bert, RunContext(0, 0.0, seed=1))
    assert stack_of(model.bert).active == (2, 1)
    set_order(model.bert, [3, 1])
    method.schedule(model.bert, RunContext(0, 0.0, seed=1))
    assert stack_of(model.bert).active == (3, 1)


def test_a_run_follows_the_schedule(tmp_path):
    trainer = tiny.trainer(tmp_path, {"layerdrop": {"rate": "progressive"}}, budget="8steps")
    stack, seen = stack_of(trainer.model.bert), []
    trainer.model.bert.register_forward_pre_hook(lambda *_: seen.append(stack.active))
    trainer.train()
    assert [len(active) for active in (*seen[:2], *seen[6:])] == [2, 2, 4, 4]
    trainer.save_model()
    assert trainer.model.export().config.num_hidden_layers == 4


def test_sequential_after_stacking():
    model = tiny.model({"layerdrop": {"rate": "progressive"}, "stacking": {"depth": 1, "at": [0.3, 0.6]}}).train()
    drop = next(method for method in model.methods if method.name == "layerdrop")
    drop.schedule(model.bert, RunContext(5, 0.59, seed=1))
    assert stack_of(model.bert).dropped == frozenset()
