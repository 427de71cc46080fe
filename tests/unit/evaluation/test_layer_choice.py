"""Choosing layers by loss: the elimination, the choice of all choices, and how gates are drawn."""

import itertools
import math

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.held_out_loss import fixed_mask_batches, held_out_loss
from hf_effpt.evaluation.layer_choice import activations_of, draw_gates, eliminate, gated_loss, rates_of, search
from hf_effpt.evaluation.masked_logits import stacked
from tests import tiny


def model(layers=4):
    torch.manual_seed(5)
    return tiny.model({}, num_hidden_layers=layers).export()


def batches(number=24):
    return list(fixed_mask_batches(tiny.rows(number, seed=1), tiny.tokenizer(), 8))


def test_elimination_takes_out_what_the_others_bear_best():
    worth = (5.0, 1.0, 4.0, 2.0, 3.0)
    seen = []

    def loss(kept):
        seen.append(kept)
        return -sum(worth[index] for index in kept)

    assert eliminate((0, 1, 2, 3, 4), 2, loss) == (0, 2)
    assert {len(kept) for kept in seen} == {4, 3, 2}
    assert eliminate((0, 1, 2), 3, loss) == (0, 1, 2)
    assert eliminate((0, 1, 2), 1, lambda kept: 0.0) == (0,)  # of equals the topmost goes first


def test_few_choices_are_all_measured_and_the_best_is_kept():
    given, rows = model(), batches()
    kept, figures = search(given, 2, rows)

    def loss(order):
        with stacked(given.base_model) as stack:
            stack.order = order
            found = held_out_loss(given, rows)
        return found.total / found.masked

    losses = {order: loss(order) for order in itertools.combinations(range(4), 2)}
    assert kept == min(losses, key=losses.__getitem__)
    assert figures["held_out_loss"] == losses[kept]
    assert figures["held_out_loss_before"] == loss((0, 1, 2, 3))
    assert figures["exhaustive"]
    assert figures["measured"] == math.comb(4, 2) + 1


def test_many_choices_are_not():
    kept, figures = search(model(10), 7, batches(4))
    assert not figures["exhaustive"]
    assert len(kept) == 7
    assert sorted(set(kept)) == list(kept)
    assert figures["measured"] == 1 + 10 + 9 + 8 < math.comb(10, 7)


def test_a_diverged_model_has_no_better_layers():
    given = model()
    given.bert.encoder.layer[0].output.dense.bias.data.fill_(math.nan)
    with pytest.raises(EffptError, match="has diverged"):
        search(given, 2, batches())


def test_rates_are_kept_in_proportion_to_scores_up_to_one():
    scores = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.45, 0.45, 0.05, 0.05]])
    rates = rates_of(scores.log(), 2)
    torch.testing.assert_close(
        rates, torch.tensor([[1.0, 1 / 3, 1 / 3, 1 / 3], [0.5] * 4, [0.9, 0.9, 0.1, 0.1]]), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(rates.sum(dim=1), torch.full((3,), 2.0))
    for depth in range(1, 5):
        drop = 1 - rates_of(torch.randn(50, 4).log_softmax(dim=1), depth)
        torch.testing.assert_close(drop.mean(dim=1), torch.full((50,), 1 - depth / 4))  # the mean that was wanted
        assert drop.min() >= 0


def test_gates_are_whole_and_their_gradient_is_that_of_the_rates():
    log_scores = torch.randn(6, 5).log_softmax(dim=1).requires_grad_()
    gates = draw_gates(log_scores, 3, torch.Generator().manual_seed(0))
    assert set(gates.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(gates.sum(dim=1), torch.full((6,), 3.0))
    weights = torch.randn(6, 5)
    (gates * weights).sum().backward()
    by_gates = log_scores.grad.clone()
    log_scores.grad = None
    (rates_of(log_scores, 3) * weights).sum().backward()
    torch.testing.assert_close(by_gates, log_scores.grad)
    likely = torch.tensor([[0.6, 0.2, 0.2]]).log().expand(4000, -1)
    drawn = draw_gates(likely, 1, torch.Generator().manual_seed(0)).mean(dim=0)
    torch.testing.assert_close(drawn, torch.tensor([0.6, 0.2, 0.2]), rtol=0, atol=0.03)


def test_gates_leave_out_what_they_are_zero_for():
    given, (batch, *_) = model().eval(), batches()
    rows = len(batch["input_ids"])
    for kept in ((0, 1, 2, 3), (1, 2), (0, 3), ()):
        gates = torch.zeros(rows, 4)
        gates[:, list(kept)] = 1.0
        with stacked(given.base_model) as stack:
            stack.order = kept
            found = held_out_loss(given, [batch])
        expected = torch.tensor(found.total / found.masked, dtype=torch.float32)
        torch.testing.assert_close(gated_loss(given, batch, gates).detach(), expected, rtol=1e-4, atol=1e-5)


def test_activations_are_the_mean_outputs_of_each_layer():
    given, (batch, *_) = model().eval(), batches()
    with torch.no_grad():
        states = given.bert(batch["input_ids"], output_hidden_states=True).hidden_states[1:]
        found = activations_of(given, batch)
    torch.testing.assert_close(found, torch.stack([state.mean(dim=1) for state in states], dim=1))


def test_activations_of_a_row_do_not_depend_on_its_padding():
    ids = torch.randint(5, tiny.VOCAB, (3, 9))
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    expected = activations_of(model(), {"input_ids": ids})
    for name in ("attention_mask", "document_ids"):
        found = activations_of(model(), {"input_ids": padded, name: (padded > 0).long()})
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
