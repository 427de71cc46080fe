"""Gradient lengths in closed form against numbers by hand, autograd, and all labels one by one."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.methods.selection.strategies.gradient_length import (
    ExpectedGradientLength,
    el2n,
    expected_norm,
    expected_sq,
    observed,
)
from hf_effpt.methods.selection.strategy import ResolvedSettings

F = 5
GRADIENTS = (expected_sq, expected_norm, observed)


def row(answers, positions=3, rows=1, seed=0):
    """Features, logits and labels in fp64, and the layer between them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, positions, F, dtype=torch.float64, generator=generator)
    layer = nn.Linear(F, answers, dtype=torch.float64)
    layer.weight.data = torch.randn(answers, F, dtype=torch.float64, generator=generator)
    layer.bias.data = torch.randn(answers, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, max(answers, 2), (rows, positions), generator=generator)
    return features, layer, labels


def gradient(layer, features, labels):
    """That of the mean loss of a row, weight and bias in one vector, by autograd."""
    logits = layer(features)
    if logits.shape[-1] == 1:
        loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.double())
    else:
        loss = nn.functional.cross_entropy(logits, labels)
    weight, bias = torch.autograd.grad(loss, (layer.weight, layer.bias))
    return torch.cat([weight.flatten(), bias])


def enumerated(layer, features):
    """The probability and the gradient of every combination of labels of a row."""
    with torch.no_grad():
        logits = layer(features)
        p = torch.cat([1 - logits.sigmoid(), logits.sigmoid()], -1) if logits.shape[-1] == 1 else logits.softmax(-1)
    for labels in itertools.product(range(p.shape[-1]), repeat=len(features)):
        labels = torch.tensor(labels)
        yield p.gather(1, labels[:, None]).prod(), gradient(layer, features, labels)


def scores_of(of, logits, features, labels):
    return el2n(logits, labels) if of is el2n else of(logits, features, labels)


@pytest.mark.parametrize(("p", "square", "norm"), [((0.5, 0.5), 2.0, 1.4142), ((0.9, 0.1), 0.72, 0.5091)])
def test_2_expected_lengths_by_hand(p, square, norm):
    logits, h, labels = torch.tensor([[p]]).log(), torch.tensor([[[2.0]]]), torch.tensor([[0]])
    assert expected_sq(logits, h, labels, bias=False).item() == pytest.approx(square, abs=1e-5)
    assert expected_norm(logits, h, labels, bias=False).item() == pytest.approx(norm, abs=5e-5)


def test_2_expected_lengths_of_a_logit_of_yes_by_hand():
    logits, h, labels = torch.zeros(1, 1, 1), torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1]])
    assert expected_sq(logits, h, labels, bias=False).item() == pytest.approx(6.25)
    assert expected_sq(logits, h, labels).item() == pytest.approx(6.5)


@pytest.mark.parametrize("answers", [1, 2, 7])
def test_2_the_observed_form_is_autograd(answers):
    features, layer, labels = row(answers, positions=4, rows=3)
    labels[1, 2:] = labels[2, 1] = -100
    with torch.no_grad():
        logits = layer(features)
        scores, without = observed(logits, features, labels), observed(logits, features, labels, bias=False)
    for index in range(3):
        asked = labels[index] != -100
        g = gradient(layer, features[index, asked], labels[index, asked])
        assert abs(scores[index] - g.square().sum()) < 1e-10
        assert abs(without[index] - g[: layer.weight.numel()].square().sum()) < 1e-10


@pytest.mark.parametrize(("answers", "positions", "seed"), [(1, 4, 0), (2, 4, 1), (3, 3, 2), (3, 4, 3)])
def test_2_the_expected_form_is_the_mean_over_all_labels(answers, positions, seed):
    features, layer, labels = row(answers, positions, seed=seed)
    pairs = list(enumerated(layer, features[0]))
    assert sum(p for p, _ in pairs).item() == pytest.approx(1.0)
    with torch.no_grad():
        logits = layer(features)
    mean = sum(p * g.square().sum() for p, g in pairs)
    assert abs(expected_sq(logits, features, labels).item() - mean) < 1e-10
    weights = layer.weight.numel()
    mean = sum(p * g[:weights].square().sum() for p, g in pairs)
    assert abs(expected_sq(logits, features, labels, bias=False).item() - mean) < 1e-10


def test_2_the_expected_norm_of_a_row_is_at_most_the_root_of_the_expected_square():
    features, layer, labels = row(3, positions=3)
    norm = sum(p * g.norm() for p, g in enumerated(layer, features[0]))
    with torch.no_grad():
        root = expected_sq(layer(features), features, labels).sqrt()
    assert norm < root < 2 * norm


@pytest.mark.parametrize("answers", [1, 2, 6])
def test_the_norm_of_each_position_is_the_mean_over_its_labels(answers):
    features, layer, labels = row(answers, positions=4)
    expected = [sum(p * g.norm() for p, g in enumerated(layer, features[0, [at]])) for at in range(4)]
    with torch.no_grad():
        score = expected_norm(layer(features), features, labels)
    assert abs(score.item() - sum(expected) / 4) < 1e-10


@pytest.mark.parametrize("answers", [1, 2, 6])
def test_el2n_is_the_length_of_the_gradient_by_the_logits(answers):
    features, layer, labels = row(answers, positions=4)
    logits = layer(features).detach()
    nothing = torch.zeros_like(features)
    # With features of zero, the bias alone has a gradient, which is that by the logits.
    expected = [observed(logits[:, [at]], nothing[:, [at]], labels[:, [at]]).sqrt() for at in range(4)]
    assert abs(el2n(logits, labels) - sum(expected) / 4) < 1e-10


def test_el2n_by_hand():
    logits = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]]).log()
    expected = ((0.4**2 + 0.3**2 + 0.1**2) ** 0.5 + (0.2**2 + 0.8**2 + 0.6**2) ** 0.5) / 2
    assert el2n(logits, torch.tensor([[0, 1]])).item() == pytest.approx(expected)
    assert el2n(torch.tensor([[[0.75], [0.75]]]).logit(), torch.tensor([[0, 1]])).item() == pytest.approx(0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_logit_of_yes_has_half_the_square_of_two_answers(bias):
    """Of two answers, both columns of the layer get the same gradient, with opposite signs."""
    features, layer, labels = row(1, positions=4)
    logits = layer(features).detach()
    two = torch.cat([torch.zeros_like(logits), logits], dim=-1)
    for of, factor in ((expected_sq, 2.0), (observed, 2.0), (expected_norm, 2.0**0.5)):
        one = of(logits, features, labels, bias=bias)
        assert torch.allclose(of(two, features, labels, bias=bias), factor * one, atol=1e-12)
    assert torch.allclose(el2n(two, labels), 2.0**0.5 * el2n(logits, labels), atol=1e-12)


@pytest.mark.parametrize("answers", [1, 6])
@pytest.mark.parametrize("of", [*GRADIENTS, el2n])
def test_positions_without_a_question_count_as_nothing(of, answers):
    features, layer, labels = row(answers, positions=5, rows=2)
    logits = layer(features).detach()
    labels[0, 1:4] = labels[1] = -100
    garbage = [values.masked_fill((labels == -100)[..., None], torch.nan) for values in (logits, features)]
    scores = scores_of(of, *garbage, labels)
    kept = torch.tensor([0, 4])
    assert torch.allclose(scores[:1], scores_of(of, logits[:1, kept], features[:1, kept], labels[:1, kept]))
    assert scores[0] > 0
    assert scores[1] == 0.0


@pytest.mark.parametrize("of", [expected_norm, observed, el2n])
def test_a_score_does_not_grow_with_the_number_of_questions(of):
    features, layer, labels = row(6, rows=4)
    logits = layer(features).detach()
    twice = [torch.cat([values, values], dim=1) for values in (logits, features, labels)]
    assert torch.allclose(scores_of(of, *twice), scores_of(of, logits, features, labels))


def test_the_gradient_of_more_questions_is_expected_to_be_the_shorter():
    """Labels that are drawn apart cancel in the mean: of twice the positions, half the expected square."""
    features, layer, labels = row(6, rows=4)
    logits = layer(features).detach()
    twice = [torch.cat([values, values], dim=1) for values in (logits, features, labels)]
    assert torch.allclose(expected_sq(*twice), expected_sq(logits, features, labels) / 2)


@pytest.mark.parametrize("answers", [1, 50])
@pytest.mark.parametrize("of", [*GRADIENTS, el2n])
def test_half_precision_is_judged_in_fp32_also_under_autocast(of, answers):
    features, layer, labels = row(answers, rows=4)
    features, logits = features.bfloat16(), layer(features).detach().bfloat16()
    expected = scores_of(of, logits.float(), features.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        scores = scores_of(of, logits, features, labels)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)


def test_an_excluded_answer_counts_as_nothing():
    features, layer, labels = row(4, rows=3)
    logits = layer(features).detach()
    excluded = torch.cat([logits, torch.full((3, 3, 2), -torch.inf, dtype=torch.float64)], dim=-1)
    for of in (*GRADIENTS, el2n):
        assert torch.allclose(scores_of(of, excluded, features, labels), scores_of(of, logits, features, labels))


@pytest.mark.parametrize("answers", [1, 6])
@pytest.mark.parametrize("rule", ExpectedGradientLength.rules)
def test_each_rule_scores_what_the_head_reads(rule, answers):
    """Features are what the head makes of the hidden states, and a bias counts."""
    features, layer, labels = row(answers, rows=4)
    logits = layer(features).detach()
    of = {"expected_sq": expected_sq, "expected_norm": expected_norm, "observed": observed, "el2n": el2n}[rule]
    before = labels.clone(), logits.clone()
    reading = HeadInputs(features / 2, labels, lambda hidden: (2 * hidden, logits))
    scores = ExpectedGradientLength(ResolvedSettings(rule=rule), None).rate(reading)
    assert torch.equal(scores, scores_of(of, logits, features, labels))
    assert torch.equal(labels, before[0])
    assert torch.equal(logits, before[1])
    ghost = replace(reading, hidden_BMD=features.to("meta"), labels_BM=labels.to("meta"))
    ghost = replace(ghost, head=lambda hidden: (2 * hidden, logits.to("meta")))
    assert ExpectedGradientLength(ResolvedSettings(rule=rule), None).rate(ghost).shape == (4,)


@pytest.mark.parametrize("rule", [rule for rule in ExpectedGradientLength.rules if rule != "observed"])
def test_at_fewer_positions_the_score_is_about_the_same_however_many_answers_a_row_asks_for(rule):
    """Of rows whose positions are all alike, it is the same."""
    features, layer, labels = row(6, rows=4)
    labels = labels.clamp(min=0)
    labels[0, 1:] = labels[1, 3:] = -100
    alike = features[:, :1].expand_as(features)
    labels = torch.where(labels == -100, -100, labels[:, :1])
    reading = HeadInputs(alike, labels, lambda hidden: (hidden, layer(hidden)))
    strategy = ExpectedGradientLength(ResolvedSettings(rule=rule), None)
    for number in (1, 2, 3):
        assert torch.allclose(strategy.rate(reading.subsample(number)), strategy.rate(reading))


def test_of_no_rule_the_expected_square_is_meant():
    features, layer, labels = row(6, rows=4)
    reading = HeadInputs(features, labels, lambda hidden: (hidden, layer(hidden)))
    scores = ExpectedGradientLength(ResolvedSettings(), None).rate(reading)
    assert torch.equal(scores, expected_sq(layer(features), features, labels))
    assert not scores.requires_grad
