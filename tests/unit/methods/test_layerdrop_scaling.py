"""Scaling for layers that are skipped: in pre-norm models, and refused elsewhere."""

import pytest
import torch
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormModel

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.methods import LayerDrop
from tests import tiny

IDS = torch.arange(5, 21).view(2, 8)


def pre_norm(layers=2):
    torch.manual_seed(4)
    shape = tiny.SHAPE | {"num_hidden_layers": layers, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return RobertaPreLayerNormModel(RobertaPreLayerNormConfig(**shape), add_pooling_layer=False)


def bound(model, **settings):
    method = LayerDrop(**settings)
    method.bind(model.config, {})
    method.inject(model)
    return method


def changes(model):
    """By index, what each layer that runs adds to its input: its own change, and the one that is passed on."""
    stack, seen = stack_of(model), []
    for layer in stack:
        index = list(stack.children()).index(layer.args[0] if hasattr(layer, "args") else layer)
        hidden = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(index))
        seen.append((index, stack[index](hidden, None) - hidden, layer(hidden, None) - hidden))
    return seen


@pytest.mark.parametrize("scaling", ["none", "training"])
def test_without_dropping_it_is_the_identity(scaling):
    """Up to the rounding of adding a difference back."""
    expected, model = pre_norm()(IDS).last_hidden_state, pre_norm()
    method = bound(model, p=0.0, scaling=scaling)
    for training in (True, False):
        model.train(training)
        method.schedule(model, RunContext(0, 0.0, seed=1))
        torch.testing.assert_close(model(IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-6)


def test_in_training_only_what_runs_is_scaled_up():
    model = pre_norm(4).train()
    method = bound(model, p=0.5, scaling="training")
    for step in range(5):
        method.schedule(model, RunContext(step, 0.0, seed=1))
        found = changes(model)
        assert len(found) == len(stack_of(model).active)
        for _, change, passed in found:
            torch.testing.assert_close(passed, change / (1 - 0.5))
    plain, model = pre_norm().eval(), pre_norm()
    method = bound(model, p=0.5, scaling="training")
    method.schedule(model, RunContext(0, 0.0, seed=1))
    assert torch.equal(model.eval()(IDS).last_hidden_state, plain(IDS).last_hidden_state)


def test_the_expected_change_of_a_layer_is_its_change():
    """Over draws, one layer skipped with p and scaled by 1 / (1 - p) adds on average what it adds without."""
    model = pre_norm(1).train()
    method = bound(model, p=0.4, scaling="training")
    hidden = torch.randn(1, 4, 32)
    layer, total = stack_of(model)[0], torch.zeros(1, 4, 32)
    for step in range(2000):
        method.schedule(model, RunContext(step, 0.0, seed=1))
        for running in stack_of(model):
            total += running(hidden, None) - hidden
    torch.testing.assert_close(total / 2000, layer(hidden, None) - hidden, rtol=0.06, atol=1e-3)


def test_the_export_is_not_scaled():
    model = pre_norm()
    method = bound(model, p=0.2, scaling="training")
    method.schedule(model, RunContext(0, 0.0, seed=1))
    method.eject(model)
    assert torch.equal(model.eval()(IDS).last_hidden_state, pre_norm().eval()(IDS).last_hidden_state)


def test_a_layer_that_is_never_run_has_no_scale():
    model = pre_norm(4).train()
    method = bound(model, p=0.5, rate="progressive", scaling="training")
    method.schedule(model, RunContext(0, 0.0, seed=1))  # the two in the middle are skipped with probability 1
    assert dict(stack_of(model).scales) == {0: 1.0, 3: 1.0}
