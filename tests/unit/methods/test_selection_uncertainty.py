"""Entropy, variation ratio and margin by hand, and committees of dropout draws."""

import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.methods.selection import Selection, scoring
from hf_effpt.methods.selection.strategies.uncertainty import (
    DeepBayesian,
    LeastConfidence,
    bald,
    entropy,
    margin,
    max_entropy,
    variation_ratio,
)
from hf_effpt.methods.selection.strategy import ResolvedSettings
from tests import tiny

B, M, D, V = 5, 6, 8, 11


def reading(answers=V, seed=0, dtype=torch.float32, device="cpu"):
    """A reading whose rows have another number of answers each, the first none."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, M, D, generator=generator).to(device, dtype)
    labels = torch.randint(0, max(answers, 2), (B, M), generator=generator)
    labels[torch.arange(M) >= torch.arange(B)[:, None]] = -100
    weight = 2 * torch.randn(answers, D, generator=generator).to(device, dtype)
    return HeadInputs(hidden, labels.to(device), lambda hidden: (hidden, nn.functional.linear(hidden, weight)))


def saying(logits, labels=None):
    """A reading of these logits, of shape (rows, positions, answers)."""
    labels = torch.zeros(logits.shape[:2], dtype=torch.long) if labels is None else labels
    return HeadInputs(torch.zeros(*logits.shape[:2], 1), labels, lambda hidden: (hidden, logits))


def rated(rule, logits, labels=None):
    return LeastConfidence(ResolvedSettings(rule=rule), None).rate(saying(logits, labels))


def bayesian(keys, rule="bald", **settings):
    strategy = DeepBayesian(ResolvedSettings(rule=rule, **settings), None)
    strategy.salts, strategy.keys_B = (3, 14), keys
    return strategy


KEYS = torch.arange(100, 100 + B)
SPEC = torch.tensor([0.5, 0.25, 0.25]).log()


def test_1_entropy_variation_ratio_and_margin_by_hand():
    logits = SPEC[None, None] + 7.0  # a shift changes no probability
    assert rated("entropy", logits).item() == pytest.approx(1.0397, abs=5e-5)
    assert rated("variation_ratio", logits).item() == pytest.approx(0.5)
    assert rated("margin", logits).item() == pytest.approx(-0.25)


def test_1_a_token_that_is_certain_halves_the_mean():
    logits = torch.stack([SPEC, torch.tensor([0.0, -torch.inf, -torch.inf])])[None]
    assert rated("entropy", logits).item() == pytest.approx(0.5199, abs=5e-5)


@pytest.mark.parametrize(
    ("members", "expected"),
    [([(1.0, 0.0), (0.0, 1.0)], 0.6931), ([(0.9, 0.1), (0.1, 0.9)], 0.3681), ([(0.7, 0.3), (0.7, 0.3)], 0.0)],
)
def test_1_bald_by_hand(members, expected):
    assert bald(iter(torch.tensor(members))).item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("dropout", [0.0, -0.1, 1.0, math.nan])
def test_1_dropout_is_a_rate_between_0_and_1(dropout):
    with pytest.raises(EffptError, match=r"`selection.dropout` must be in \(0, 1\).*all draws agree"):
        Selection(strategy="deep_bayesian", dropout=dropout)


def test_max_entropy_is_that_of_the_mean_and_leaves_the_draws_alone():
    members = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert max_entropy(members).item() == pytest.approx(math.log(2))
    assert members.tolist() == torch.tensor([[0.9, 0.1], [0.1, 0.9]]).tolist()


def test_streamed_entropy_is_the_entropy_of_the_probabilities():
    logits = 5 * torch.randn(4, 3, 50, dtype=torch.float64)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.allclose(entropy(logits), expected, atol=1e-12)


def test_an_excluded_answer_counts_as_nothing_and_a_broken_one_is_not_hidden():
    logits = torch.randn(2, 3, 4)
    excluded = torch.cat([logits, torch.full((2, 3, 2), -torch.inf)], dim=-1)
    for rule in (entropy, variation_ratio, margin):
        assert torch.allclose(rule(excluded), rule(logits), atol=1e-6)
    assert entropy(torch.tensor([[[0.0, torch.nan]]])).isnan().all()


@pytest.mark.parametrize("rule", LeastConfidence.rules)
def test_positions_without_a_question_count_as_nothing(rule):
    logits = torch.randn(3, 4, V)
    labels = torch.tensor([[1, -100, 2, -100], [0, -100, 3, -100], [-100] * 4])
    garbage = logits.masked_fill((labels == -100)[..., None], torch.nan)
    scores = rated(rule, garbage, labels)
    assert torch.equal(scores[:2], rated(rule, logits[:2, ::2]))
    assert scores[2] == 0.0


@pytest.mark.parametrize("rule", LeastConfidence.rules)
def test_a_score_does_not_grow_with_the_number_of_questions(rule):
    logits = torch.randn(4, 3, V)
    scores = rated(rule, logits)
    assert torch.allclose(rated(rule, torch.cat([logits, logits], dim=1)), scores, atol=1e-6)
    labels = torch.zeros(4, 6, dtype=torch.long).index_fill(1, torch.arange(3, 6), -100)
    assert torch.allclose(rated(rule, torch.cat([logits, 9 * logits], dim=1), labels), scores, atol=1e-6)


@pytest.mark.parametrize("rule", LeastConfidence.rules)
def test_half_precision_is_judged_in_fp32(rule):
    logits = (4 * torch.randn(3, 4, 200)).bfloat16()
    scores = rated(rule, logits)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, rated(rule, logits.float()))


def test_a_logit_of_yes_has_two_answers():
    logits = torch.tensor([-30.0, -2.0, 0.0, 0.5, 30.0], dtype=torch.float64)[None, :, None]
    p = logits.sigmoid()[..., 0]
    expected = -torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p)
    assert torch.allclose(entropy(logits), expected, atol=1e-12)
    assert torch.allclose(variation_ratio(logits), 1 - torch.maximum(p, 1 - p), atol=1e-12)
    assert torch.allclose(margin(logits), -(2 * p - 1).abs(), atol=1e-12)


@pytest.mark.parametrize("rule", DeepBayesian.rules)
def test_draws_of_yes_are_draws_of_two_answers(rule):
    yes = reading(answers=1)

    def two(hidden):
        features, logits = yes.head(hidden)
        return features, torch.cat([torch.ones_like(logits), logits + 1], dim=-1)

    strategy = bayesian(KEYS, rule)
    scores = strategy.rate(yes)
    assert torch.allclose(scores, strategy.rate(replace(yes, head=two)), atol=1e-6)
    assert (scores[1:] > 0).all()


@pytest.mark.parametrize("answers", [1, V])
@pytest.mark.parametrize("rule", DeepBayesian.rules)
def test_committees_by_all_their_probabilities_at_once(rule, answers):
    strategy, given = bayesian(KEYS, rule, passes=7, dropout=0.3), reading(answers, dtype=torch.float64)
    logits = torch.stack([draw.head(draw.hidden_BMD)[1] for draw in strategy.draws(given)])
    p = torch.cat([1 - logits.sigmoid(), logits.sigmoid()], dim=-1) if answers == 1 else logits.softmax(dim=-1)

    def of(p):
        return -torch.xlogy(p, p).sum(dim=-1)

    scores = of(p.mean(dim=0)) - (of(p).mean(dim=0) if rule == "bald" else 0.0)
    pairs = zip(scores, given.labelled_BM, strict=True)
    expected = [row[asked].mean() if asked.any() else 0.0 for row, asked in pairs]
    assert torch.allclose(strategy.rate(given), torch.tensor(expected, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("rule", DeepBayesian.rules)
def test_draws_go_with_the_row_and_not_with_its_place(rule):
    given, order = reading(), torch.tensor([3, 1, 4, 0, 2])
    scores = bayesian(KEYS, rule).rate(given)
    moved = replace(given, hidden_BMD=given.hidden_BMD[order], labels_BM=given.labels_BM[order])
    assert torch.allclose(bayesian(KEYS[order], rule).rate(moved), scores[order], atol=1e-6)
    fewer = replace(given, hidden_BMD=given.hidden_BMD[2:, :4], labels_BM=given.labels_BM[2:, :4])
    assert torch.allclose(bayesian(KEYS[2:], rule).rate(fewer), scores[2:], atol=1e-6)
    assert not torch.allclose(bayesian(KEYS[order], rule).rate(given)[1:], scores[1:], atol=1e-3)


def test_draws_are_a_function_of_their_salts_and_no_generator_moves():
    given, before = reading(), torch.get_rng_state()
    strategy = bayesian(KEYS)
    scores = strategy.rate(given)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(strategy.rate(given), scores)
    strategy.salts = (3, 15)
    assert (strategy.rate(given) != scores)[1:].all()


def test_draws_drop_as_much_as_they_say_and_keep_the_mean():
    given = HeadInputs(torch.ones(50, 10, 40), torch.zeros(50, 10, dtype=torch.long), lambda hidden: (hidden, hidden))
    draws = [draw.hidden_BMD for draw in bayesian(torch.arange(50), passes=2, dropout=0.25).draws(given)]
    for draw in draws:
        assert set(draw.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
        assert (draw == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    # Independent from draw to draw, from row to row, and from place to place.
    gone = [draw == 0 for draw in draws]
    for first, second in ((gone[0], gone[1]), (gone[0][1:], gone[0][:-1]), (gone[0][:, 1:], gone[0][:, :-1])):
        assert (first & second).float().mean().item() == pytest.approx(0.25**2, abs=0.01)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_draws_of_sizes_that_are_no_multiple_of_four(size):
    labels = torch.zeros(4000, 1, dtype=torch.long)
    given = HeadInputs(torch.ones(4000, 1, size), labels, lambda hidden: (hidden, hidden))
    (first, second) = (
        draw.hidden_BMD[:, 0] == 0 for draw in bayesian(torch.arange(4000), dropout=0.5, passes=2).draws(given)
    )
    for place in range(size):
        assert first[:, place].float().mean().item() == pytest.approx(0.5, abs=0.04)
        for other in range(place):
            assert (first[:, place] == first[:, other]).float().mean().item() == pytest.approx(0.5, abs=0.04)
        assert (first[:, place] == second[:, place]).float().mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("rate", "share"), [(1e-7, 2.0**-16), (1 - 1e-7, 1 - 2.0**-16)])
def test_a_rate_near_0_or_1_is_none_of_them(rate, share):
    given = HeadInputs(torch.ones(64, 64, 64), torch.zeros(64, 64, dtype=torch.long), lambda hidden: (hidden, hidden))
    (draw, _) = bayesian(torch.arange(64), dropout=rate, passes=2).draws(given)
    gone = int((draw.hidden_BMD == 0).sum())
    assert 0 < gone < 64**3
    assert gone / 64**3 == pytest.approx(share, abs=5e-5)
    assert draw.hidden_BMD.max().item() == pytest.approx(1 / (1 - share))


def test_whole_passes_are_judged_like_draws_at_the_head_and_get_no_dropout_of_their_own():
    given = reading()
    strategy = bayesian(KEYS)
    assert torch.equal(strategy.rate_draws(strategy.draws(given)), strategy.rate(given))
    assert strategy.rate_draws([given, given, given]).abs().max() < 1e-6
    assert torch.allclose(
        bayesian(KEYS, "max_entropy").rate_draws(iter([given, given])),
        LeastConfidence(ResolvedSettings(), None).rate(given),
        atol=1e-6,
    )


def test_draws_are_taken_one_by_one_and_their_logits_not_kept():
    given, made = reading(), []

    def head(hidden):
        assert all(logits() is None for logits in made)
        features, logits = given.head(hidden)
        made.append(weakref.ref(logits))
        return features, logits

    bayesian(KEYS, passes=6).rate(replace(given, head=head))
    assert len(made) == 6


@pytest.mark.parametrize("rule", DeepBayesian.rules)
def test_draws_of_half_precision_are_judged_in_fp32(rule):
    given = reading(dtype=torch.bfloat16)
    scores = bayesian(KEYS, rule).rate(given)
    assert scores.dtype == torch.float32

    def full(hidden):
        return tuple(output.float() for output in given.head(hidden))

    assert torch.equal(scores, bayesian(KEYS, rule).rate(replace(given, head=full)))


@pytest.mark.parametrize("answers", [1, V])
def test_without_data_there_are_shapes(answers):
    ghost = reading(answers, device="meta")
    for rule in LeastConfidence.rules:
        assert LeastConfidence(ResolvedSettings(rule=rule), None).rate(ghost).shape == (B,)
    for rule in DeepBayesian.rules:
        assert bayesian(KEYS.to("meta"), rule).rate(ghost).shape == (B,)


def test_of_no_rule_the_first_is_meant():
    given = reading()
    assert torch.equal(
        LeastConfidence(ResolvedSettings(), None).rate(given),
        LeastConfidence(ResolvedSettings(rule="entropy"), None).rate(given),
    )
    assert DeepBayesian(ResolvedSettings(), None).rule == "max_entropy"


def test_draws_for_a_row_do_not_depend_on_its_padding():
    ids = torch.randint(5, tiny.VOCAB, (3, 9))
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    keys = []
    for rows in ({"input_ids": ids}, {"input_ids": padded, "attention_mask": (padded > 0).long()}):
        strategy = SimpleNamespace(resolved=SimpleNamespace(num_score_positions=None))
        strategy.rate = lambda reading, of=strategy: of.keys_B
        labels = torch.full_like(rows["input_ids"], -100)
        labels[:, 2] = 7
        keys.append(scoring._rated(strategy, "full", tiny.model().eval(), {**rows, "labels": labels}))
    assert torch.equal(*keys)
    assert len(keys[0].unique()) == 3
