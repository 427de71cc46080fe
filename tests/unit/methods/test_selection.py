"""Selection without a model: its settings, how rows are chosen by scores, and the strategies that go by losses."""

import math
from types import SimpleNamespace

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.token_losses import TokenLosses
from hf_effpt.methods.selection import Selection
from hf_effpt.methods.selection.picking import by_score, choose, rank_weights, sample
from hf_effpt.methods.selection.strategies import STRATEGIES
from hf_effpt.methods.selection.strategies.losses import percentile, prunable
from hf_effpt.methods.selection.strategies.weighing import RENEWED, bounded, highest
from hf_effpt.methods.selection.strategy import ResolvedSettings
from tests.picking import pool

CONFIG = SimpleNamespace(vocab_size=5, hidden_size=4)


def made(name, **resolved):
    kind = STRATEGIES[name]
    return kind(ResolvedSettings(**{**kind.defaults, **resolved}), CONFIG)


def shares(strategy, scores, number=1, draws=1000, fraction=0.5):
    """Share of the draws in which each row is picked; a share of a half has a standard deviation of 0.016."""
    counts_N = torch.zeros(len(scores))
    for step in range(draws):
        counts_N[strategy.pick(pool(torch.tensor(scores), step=step, fraction=fraction), number)] += 1
    return counts_N / draws


# Settings.


def test_what_is_left_open_is_the_strategys_own():
    resolved = Selection().resolved
    found = (resolved.keep, resolved.start, resolved.end, resolved.interrupt, resolved.explore)
    assert found == (0.5, 0.5, 0.9, 2, 0.1)
    assert (resolved.scorer, resolved.rule, resolved.warmup) == ("embedding", "mean", 200)
    infobatch = Selection(strategy="infobatch").resolved
    assert (infobatch.keep, infobatch.end, infobatch.interrupt, infobatch.scorer) == (0.75, 0.875, 0, "stale")
    assert Selection(strategy="least_confidence", mode="rank_sample").resolved.explore == 0.0
    assert Selection(strategy="least_confidence", mode="rank_sample", explore=0.2).resolved.explore == 0.2
    assert Selection(strategy="random", interrupt=0, start=0.0).resolved.interrupt == 0


def test_the_control_is_random_at_the_same_share():
    when = {"start": 0.5, "end": 0.9, "interrupt": 2}
    assert Selection(strategy="core_set", keep=0.3).control == {"strategy": "random", "keep": 0.3, **when}
    for without in ({"strategy": "random"}, {"strategy": "reweighting"}, {"keep": 1.0}):
        assert Selection(**without).control is None


def test_too_small_a_step_leaves_no_choice():
    with pytest.raises(EffptError, match=r"`selection.keep` 0.99 of a step of 4 rows asks for 4"):
        Selection(strategy="random", keep=0.99).candidates(4, 0, 0.5)


def test_rows_are_picked_between_start_and_end_but_for_warm_up_and_interruptions():
    method = Selection(strategy="random", start=0.25, end=0.75, interrupt=3, warmup=7)
    on = [step for step in range(20) if method.is_on(step, step / 20)]
    assert on == [7, 8, 10, 11, 13, 14]
    assert [method.candidates(4, step, step / 20) == 8 for step in range(20)] == [step in on for step in range(20)]
    assert method.candidates(4, None, 0.0) == 8  # the most in any step
    assert Selection(strategy="random", start=0.0, end=1.0, interrupt=0).is_on(0, 1.0)


# Choosing.


def test_spec_4_rank_weights():
    assert rank_weights(4, 0.5).tolist() == [0.0625, 0.1875, 0.3125, 0.4375]
    assert rank_weights(4, 1.0).tolist() == [0.25] * 4


def test_spec_4_percentile_of_history():
    history = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    taken = torch.tensor([True] * 4 + [False])
    assert percentile(torch.tensor([3.0, 0.5, 9.0]), history, taken).tolist() == [0.75, 0.0, 1.0]


def test_of_equal_scores_the_lower_id_is_first():
    scores = torch.tensor([1.0, 3.0, 3.0, 3.0])
    assert by_score(scores, pool(scores)).tolist() == [1, 2, 3, 0]
    assert by_score(scores, pool(scores, ids=[4, 3, 2, 1])).tolist() == [3, 2, 1, 0]


def test_sampling_goes_by_the_weights_and_puts_nothing_back():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    counts = torch.zeros(4)
    for step in range(1000):
        counts[sample(weights, pool(number=4, step=step), 1)] += 1
    assert torch.allclose(counts / 1000, weights / 10, atol=0.05)
    picked = sample(weights, pool(number=4), 3).tolist()
    assert picked == sorted(set(picked))
    assert len(picked) == 3


def test_no_weight_is_the_last_choice_and_still_one():
    weights = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert all(sample(weights, pool(number=4, step=step), 2).tolist() == [1, 2] for step in range(50))
    assert len(sample(weights, pool(number=4), 4)) == 4


@pytest.mark.parametrize("mode", ["topk", "rank_sample", "weighted"])
@pytest.mark.parametrize("explore", [0.0, 0.3])
def test_spec_7_permuting_the_rows_permutes_the_choice(mode, explore):
    scores, ids = torch.arange(20.0) // 2, torch.arange(20) + 5
    resolved = ResolvedSettings(mode=mode, explore=explore, outliers=0.1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    straight = choose(scores, pool(scores, ids), 8, resolved)
    other = choose(scores[order], pool(scores[order], ids[order]), 8, resolved)
    assert len(set(straight.tolist())) == 8
    assert straight.tolist() == sorted(straight.tolist())
    assert set(ids[straight].tolist()) == set(ids[order][other].tolist())


def test_some_are_explored_and_outliers_only_so():
    scores = torch.arange(20.0)
    resolved = ResolvedSettings(explore=0.25, outliers=0.1)
    explored = torch.zeros(20)
    for step in range(400):
        picked = choose(scores, pool(scores, step=step), 8, resolved).tolist()
        assert set(range(12, 18)) <= set(picked)
        explored[picked] += 1
    rest = explored[[*range(12), 18, 19]] / 400
    assert torch.allclose(rest, torch.full_like(rest, 2 / 14), atol=0.06)


def test_without_exploration_outliers_are_never_picked():
    scores = torch.arange(20.0)
    for mode in ("topk", "rank_sample", "weighted"):
        for step in range(50):
            picked = choose(scores, pool(scores, step=step), 8, ResolvedSettings(mode=mode, explore=0.0, outliers=0.1))
            assert picked.max() < 18


def test_equal_or_infinite_scores_can_be_chosen_from():
    for scores in (torch.zeros(6), torch.full((6,), 1e30)):
        for mode in ("topk", "rank_sample", "weighted"):
            assert len(set(choose(scores, pool(scores), 3, ResolvedSettings(mode=mode)).tolist())) == 3


# The strategies that go by losses.


def test_spec_5_rho_and_its_tie_rule():
    excess = torch.tensor([5.0, 3.0, 2.0, 4.0]) - torch.tensor([4.5, 1.0, 1.5, 2.5])
    assert excess.tolist() == [0.5, 2.0, 0.5, 1.5]
    rho = made("rho", explore=0.0)
    assert rho.pick(pool(excess), 2).tolist() == [1, 3]
    assert rho.pick(pool(excess), 3).tolist() == [0, 1, 3]
    assert rho.pick(pool(excess, ids=[9, 1, 2, 3]), 3).tolist() == [1, 2, 3]


def test_spec_5_infobatch_keeps_the_sum_in_expectation():
    given = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert prunable(given, given.mean()).tolist() == [True, True, False, False]
    strategy, sums = made("infobatch"), {}
    strategy.mean = given.mean()
    counts = {}
    for step in range(400):
        rows = pool(given, step=step)
        picked = strategy.pick(rows, 3)
        weights = strategy.loss_weight_inputs(rows, picked) * 4 / 3  # a mean over three rows, not four
        sums[tuple(picked.tolist())] = (weights * given[picked]).sum().item()
        counts[tuple(picked.tolist())] = counts.get(tuple(picked.tolist()), 0) + 1
    assert sums == {(0, 2, 3): pytest.approx(11.0), (1, 2, 3): pytest.approx(13.0)}
    assert sum(sums.values()) / len(sums) == pytest.approx(12.0)  # each of the two is as likely
    assert counts[(0, 2, 3)] / 400 == pytest.approx(0.5, abs=0.08)


def test_infobatch_without_room_draws_uniformly_and_weighs_nothing():
    strategy = made("infobatch")
    strategy.mean = 2.5
    rows = pool(torch.tensor([1.0, 3.0, 4.0, 5.0]))
    assert strategy.loss_weight_inputs(rows, strategy.pick(rows, 2)).tolist() == [1.0, 1.0]
    assert torch.allclose(shares(strategy, [1.0, 3.0, 4.0, 5.0], 2), torch.full((4,), 0.5), atol=0.05)


def test_infobatch_weighs_each_token_by_its_row():
    told = TokenLosses(torch.ones(4), torch.ones(4, dtype=torch.bool), torch.tensor([0, 0, 1, 1]), 2)
    strategy = made("infobatch")
    assert strategy.loss_weights(told, pool(number=2)) is None
    told = TokenLosses(told.losses_N, told.labelled_N, told.row_N, 2, torch.tensor([2.0, 0.5]))
    assert strategy.loss_weights(told, pool(number=2)).tolist() == [2.0, 2.0, 0.5, 0.5]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_loss_rank_picks_with_probabilities_that_fall_with_the_rank(fraction):
    expected = torch.exp(-math.log(100.0) * (1 - fraction) * torch.arange(4) / 4)
    found = shares(made("loss_rank"), [3.0, 2.0, 9.0, 1.0], fraction=fraction)
    assert torch.allclose(found[[2, 0, 1, 3]], expected / expected.sum(), atol=0.05)


@pytest.mark.parametrize("keep", [0.5, 1 / 3])
def test_selective_backprop_goes_by_the_rank_among_all_losses_lately(keep):
    strategy = made("selective_backprop", keep=keep, queue=8)
    weights = torch.tensor([0.25, 0.5, 0.75, 1.0]) ** (1 / keep - 1)
    assert torch.allclose(shares(strategy, [1.0, 2.0, 3.0, 4.0]), (weights / weights.sum()).float(), atol=0.05)
    assert strategy.size == 8
    strategy.pick(pool(torch.tensor([7.0, 8.0])), 1)
    assert sorted(strategy.history.tolist()) == [1.0, 2.0, 3.0, 3.0, 4.0, 4.0, 7.0, 8.0]


def test_random_picks_by_lot():
    assert torch.allclose(shares(made("random"), [1.0, 2.0, 3.0, 4.0], 2), torch.full((4,), 0.5), atol=0.05)


@pytest.mark.parametrize("name", ["random", "selective_backprop", "loss_rank", "rho", "infobatch"])
def test_what_strategies_cost_can_be_counted_without_values(name):
    strategy = made(name).to("meta")
    strategy.mean = torch.empty((), device="meta")
    rows = pool(torch.empty(8))
    rows = type(rows)(rows.keys_N.to("meta"), rows.ids_N.to("meta"), rows.seen.to("meta"), 0, 0.5, 0)
    assert strategy.pick(rows, 4).shape == (4,)


# The strategies that learn from all rows.


def test_only_the_tokens_that_are_furthest_above_the_reference_count():
    excess = torch.tensor([0.1, 0.9, -0.5, 0.4, 7.0])
    asked = torch.tensor([True, True, True, True, False])
    assert highest(excess, asked, 0.5).tolist() == [0.0, 2.0, 0.0, 2.0, 0.0]
    assert highest(excess, asked, 0.7).tolist() == pytest.approx([4 / 3, 4 / 3, 0.0, 4 / 3, 0.0])
    assert highest(excess, asked, 0.6).tolist() == [0.0, 2.0, 0.0, 2.0, 0.0]
    assert highest(excess, asked, 0.01).tolist() == [0.0, 4.0, 0.0, 0.0, 0.0]
    assert highest(torch.zeros(4), torch.ones(4, dtype=torch.bool), 0.5).tolist() == [2.0, 2.0, 0.0, 0.0]


def test_token_selection_compares_with_what_came_along():
    losses_N, labelled_N = torch.tensor([5.0, 1.0, 2.0, 3.0]), torch.ones(4, dtype=torch.bool)
    strategy = made("token_selection", keep=0.5)
    told = TokenLosses(losses_N, labelled_N, torch.tensor([0, 0, 1, 1]), 2, torch.tensor([[5.0, 0.0], [0.0, 3.0]]))
    assert strategy.loss_weights(told, pool(number=2)).tolist() == [0.0, 2.0, 2.0, 0.0]
    assert strategy.loss_weights(TokenLosses(losses_N, labelled_N, told.row_N, 2), pool(number=2)) is None


def test_weights_by_the_loss_are_bounded_and_have_a_mean_of_one():
    given = torch.tensor([0.1, 1.0, 2.0, 3.0, 40.0])
    weights = bounded(given, 0.5)
    assert weights.mean() == pytest.approx(1.0)
    assert weights.min() / weights.max() >= 0.5
    assert (weights.diff() >= 0).all()
    assert bounded(torch.full((3,), 2.0), 0.5).tolist() == [1.0, 1.0, 1.0]
    low, *_, high = bounded(torch.tensor([-1.0, 1.0]), 0.25).tolist()
    assert low / high == pytest.approx(0.25)


def test_reweighting_gives_each_token_the_weight_of_its_row():
    strategy = made("reweighting", keep=0.25)
    told = TokenLosses(
        torch.tensor([1.0, 3.0, 4.0, 0.0]), torch.tensor([True, True, True, False]), torch.tensor([0, 0, 1, 1]), 2
    )
    assert strategy.loss_weights(told, pool(number=2)) is None  # in a step without selection
    strategy.on = True
    assert strategy.loss_weights(told, pool(number=2)).tolist() == pytest.approx([0.4, 0.4, 1.6, 1.6])


def on_token_losses(strategy, step, losses_N, tokens):
    labelled_N = torch.ones(len(tokens), dtype=torch.bool)
    told = TokenLosses(
        torch.tensor(losses_N), labelled_N, torch.zeros(len(tokens), dtype=torch.long), 1, torch.tensor([tokens])
    )
    strategy.on_token_losses(pool(number=1, step=step), [told])


def test_tokens_are_masked_the_more_the_worse_they_are_predicted():
    strategy = made("adaptive_masking", keep=0.2)
    assert strategy.rates_in(0).tolist() == [1.0] * 5
    on_token_losses(strategy, 0, [0.0, math.log(2), 50.0, 0.0], [0, 1, 2, 0])
    on_token_losses(strategy, 1, [1.0], [1])
    assert strategy.rates_in(RENEWED - 1).tolist() == [1.0] * 5
    for step in range(2, RENEWED):
        strategy.on_token_losses(pool(number=1, step=step), [])
    loss = 0.9 * math.log(2) + 0.1
    expected = [0.2, 0.2 + 0.8 * (1 - math.exp(-loss)), 1.0, 1.0, 1.0]
    assert strategy.rates_in(RENEWED).tolist() == pytest.approx(expected, abs=1e-6)
    assert (strategy.rates_in(RENEWED) == strategy.rates_in(2 * RENEWED - 1)).all()


def test_rates_are_renewed_whatever_steps_are_left_out():
    """With every other step interrupted, only odd ones ask for rates."""
    strategy = made("adaptive_masking", keep=0.2)
    for step in range(RENEWED):
        on_token_losses(strategy, step, [0.0], [0])
        if step % 2:
            strategy.rates_in(step)
    assert strategy.rates_in(RENEWED + 1)[0] == pytest.approx(0.2)


def test_a_resumed_run_has_the_rates_of_the_straight_one():
    straight = made("adaptive_masking", keep=0.2)
    for step in range(RENEWED + 8):
        straight.rates_in(step)
        on_token_losses(straight, step, [0.1 * step], [step % 5])
    resumed = made("adaptive_masking", keep=0.2)
    resumed.load_state_dict(straight.state_dict())
    assert (resumed.rates_in(RENEWED + 8) == straight.rates_in(RENEWED + 8)).all()
