"""The perceptron ensemble: what it learns, how it scores, and when it is not believed."""

import math

import pytest
import scipy.stats
import torch

from hf_effpt.methods.selection.picking import UNIFORM, chance
from hf_effpt.methods.selection.strategies.perceptrons import PerceptronEnsemble, draws, rank_correlation

from .vector_pools import generator, made, pool

SIZE, ROWS = 20, 32


def candidates(step, rows=ROWS):
    extras = torch.randn(rows, 3, generator=generator(step + 10_000))
    return pool(torch.randn(rows, SIZE, generator=generator(step)), step, extras=extras)


def losses_of(rows, noise=0.3):
    """Long rows, and those far along one direction, are hard; all become easier."""
    clean_N = 5.0 - rows.step / 200 + 0.5 * rows.seen[:, -3] + 0.3 * rows.seen[:, 0]
    return clean_N + noise * torch.randn(len(rows), generator=generator(rows.step + 20_000))


def learned(steps=200, noise=0.3, **resolved):
    strategy = made(PerceptronEnsemble, SIZE, **resolved)
    for step in range(steps):
        rows = candidates(step)
        strategy.learn(rows, losses_of(rows, noise))
    return strategy


def test_after_the_warm_up_the_predictions_rank_rows_as_their_losses_do():
    strategy = learned()
    assert strategy.resolved.warmup == 200
    assert strategy.correlation > 0.6
    rows = candidates(5000, rows=400)
    clean_N = 0.5 * rows.seen[:, -3] + 0.3 * rows.seen[:, 0]
    assert rank_correlation(strategy.scores(rows), clean_N) > 0.75


def test_hard_rows_are_picked():
    strategy = learned(explore=0.0)
    rows = candidates(5000, rows=100)
    picked = strategy.pick(rows, 50)
    losses_N = losses_of(rows)
    assert losses_N[picked].mean() > losses_N.mean() + 0.25


def test_what_cannot_be_predicted_is_not_believed_and_rows_are_picked_by_chance():
    strategy = made(PerceptronEnsemble, SIZE)
    for step in range(300):
        rows = candidates(step)
        strategy.learn(rows, torch.randn(ROWS, generator=generator(step + 30_000)))
    assert strategy.correlation < 0.2
    rows = candidates(5000)
    assert torch.equal(strategy.scores(rows), chance(rows, UNIFORM))
    strategy.correlation.fill_(0.2)
    assert torch.equal(strategy.scores(rows), strategy.judge(rows).double())


@pytest.mark.parametrize("rule", ["mean", "ucb", "vote", "agreement"])
def test_each_rule_scores_as_it_says(rule):
    strategy = learned(rule=rule)
    rows = candidates(5000)
    losses_EN = strategy.predict(rows)
    assert losses_EN.shape == (5, ROWS)
    mean_N, deviation_N = losses_EN.mean(dim=0), losses_EN.std(dim=0, correction=0)
    assert deviation_N.min() > 0
    median = (strategy.median - strategy.losses.mean) / strategy.losses.variance.sqrt()
    votes_N = (losses_EN > median).float().mean(dim=0)
    found_N = strategy.scores(rows)
    if rule == "vote":
        assert votes_N.unique().numel() > 2
        assert torch.allclose((found_N * 5).floor().float(), votes_N * 5)
        tied = votes_N == votes_N.mode().values
        assert torch.equal(found_N[tied].argsort(), mean_N[tied].argsort())
    else:
        expected = {"mean": mean_N, "ucb": mean_N + deviation_N, "agreement": deviation_N}[rule]
        assert torch.allclose(found_N.float(), expected)


def test_members_differ_by_weights_features_and_rows():
    strategy = made(PerceptronEnsemble, SIZE)
    assert strategy.subspace.sum(dim=1).tolist() == [round(0.8 * (SIZE + 3))] * 5
    assert len({tuple(member.tolist()) for member in strategy.subspace}) == 5
    first_EDH = strategy.networks.weights[0]
    assert len({float(member.sum()) for member in first_EDH}) == 5
    hidden = strategy.subspace == 0
    for step in range(5):
        rows = candidates(step)
        strategy.learn(rows, losses_of(rows))
        assert (first_EDH[hidden] == 0).all()
        assert (first_EDH[~hidden] != 0).all()


def test_how_often_a_row_counts_is_poisson_distributed_and_depends_on_row_step_and_member_only():
    rows = candidates(0, rows=20_000)
    counts_EN = draws(rows, 3)
    for times in range(5):
        expected = math.exp(-1) / math.factorial(times)
        assert (counts_EN == times).float().mean().item() == pytest.approx(expected, abs=0.006)
    assert counts_EN.var().item() == pytest.approx(1.0, abs=0.03)
    assert abs(torch.corrcoef(counts_EN)[0, 1]) < 0.03
    some = torch.tensor([5, 3, 77])
    assert torch.equal(draws(rows.of(some), 3), counts_EN[:, some])
    assert not torch.equal(draws(candidates(1, rows=20_000), 3), counts_EN)


def test_a_step_is_that_of_gradient_descent_on_the_mean_squared_error_of_the_rows_drawn():
    strategy = learned(30)
    rows = candidates(30)
    losses_N = losses_of(rows)
    before = [weight.clone().requires_grad_() for weight in strategy.networks.weights]
    strategy.learn(rows, losses_N)
    rows_ND = strategy.features.standardised(rows.seen)
    target_N = strategy.losses.standardised(losses_N[:, None])[:, 0]
    first_EDH, bias_EH, last_EH, offset_E = before
    inputs_END = rows_ND * strategy.subspace[:, None]
    hidden_ENH = (torch.einsum("end,edh->enh", inputs_END, first_EDH) + bias_EH[:, None]).relu()
    error_EN = (torch.einsum("enh,eh->en", hidden_ENH, last_EH) + offset_E[:, None] - target_N) ** 2
    counts_EN = draws(rows, 5)
    gradients = torch.autograd.grad(((counts_EN * error_EN).sum(dim=1) / counts_EN.sum(dim=1)).sum(), before)
    for weight, old, gradient in zip(strategy.networks.weights, before, gradients, strict=True):
        assert torch.allclose(weight, old - 0.01 * gradient, atol=1e-6)


def test_a_single_row_of_many_features_does_not_throw_the_networks_past_the_mark():
    strategy = made(PerceptronEnsemble, 1000)
    for step in range(300):
        rows = pool(torch.randn(1, 1000, generator=generator(step)), step)
        strategy.learn(rows, torch.randn(1, generator=generator(step + 1000)))
    assert strategy.predict(candidates_of(1000)).abs().max() < 10


def candidates_of(size):
    return pool(torch.randn(ROWS, size, generator=generator(9)), 9)


def test_the_rank_correlation_is_spearmans_ties_included():
    for seed in range(4):
        one_N = torch.randint(6, (25,), generator=generator(seed)).float()
        other_N = one_N + torch.randn(25, generator=generator(seed + 10))
        expected = scipy.stats.spearmanr(one_N, other_N).statistic
        assert rank_correlation(one_N, other_N).item() == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(torch.ones(5), torch.arange(5)) == 0
    assert rank_correlation(torch.ones(1), torch.ones(1)) == 0


def test_predictions_are_compared_with_losses_that_they_were_not_learned_from():
    strategy = learned(100)
    rows = candidates(100)
    losses_N, before = losses_of(rows), strategy.correlation.clone()
    found = rank_correlation(strategy.predict(rows).mean(dim=0), losses_N)
    strategy.learn(rows, losses_N)
    assert strategy.correlation.item() == pytest.approx((0.9 * before + 0.1 * found).item())


def test_losses_that_are_all_equal_say_nothing_of_the_predictions():
    strategy = learned()
    before = strategy.correlation.clone()
    strategy.learn(candidates(300), torch.full((ROWS,), 4.0))
    strategy.learn(candidates(301, rows=1), torch.full((1,), 3.0))
    assert torch.equal(strategy.correlation, before)


def test_the_figure_is_the_mean_over_the_steps_of_a_log_entry():
    strategy = learned(20)
    sums = {name: 4 * float(value) for name, value in strategy.sums().items()}
    assert strategy.metrics(sums) == {"selection_correlation": pytest.approx(strategy.correlation.item())}
    assert strategy.metrics({}) == {}
