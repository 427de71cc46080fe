"""Lottery tickets in compiled layers, with gradient checkpointing, and what a step counts as."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from hf_effpt.core.context import RunContext
from tests import tiny

LEDGERS = {"magnitude": {"rounds": 2}, "supermask": {"learn": "supermask", "rescale": True}}
kinds = pytest.mark.parametrize("lottery", LEDGERS.values(), ids=LEDGERS)


def losses(model, steps=3):
    """The losses of a few steps in which other weights are there in each."""
    (method,) = model.methods
    found = []
    for step in range(steps):
        method.schedule(model.bert, RunContext(step, 0.0, seed=7))
        if method.prunes:
            model.bert.masks.kept()["layer.0.up"][step] = False
        loss = model(**tiny.batch(4, objective="mlm")).loss
        loss.backward()
        found.append(loss.item())
    return found


def model_of(lottery):
    torch.manual_seed(5)
    lean = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny.model({"lottery": lottery}, **lean).train()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
@kinds
def test_compiled_layers_follow_the_masks_without_compiling_again(lottery):
    torch._dynamo.reset()
    expected = losses(model_of(lottery))
    model, counter = model_of(lottery), CompileCounter()
    for layer in model.bert.encoder.layer.children():
        layer.compile(backend=counter)
    assert losses(model, 1) == pytest.approx(expected[:1], abs=1e-5)
    graphs = counter.frame_count
    assert losses(model) == pytest.approx(expected, abs=1e-5)
    assert counter.frame_count == graphs
    assert expected[0] != expected[1]


@kinds
def test_checkpointed_activations_see_the_same_masks(lottery):
    def learned(checkpointing):
        model = model_of(lottery)
        if checkpointing:
            new_name = getattr(model, "activation_checkpointing_enable", None)
            (new_name or model.gradient_checkpointing_enable)()
        losses(model, 2)
        return {name: p.grad for name, p in model.named_parameters()}

    plain, checkpointed = learned(False), learned(True)
    for name, gradient in plain.items():
        other = checkpointed[name]
        assert (gradient is None and other is None) or torch.allclose(gradient, other, atol=1e-6), name


def test_zeros_cost_as_much_as_any_other_weight(tmp_path):
    """The clock is charged the same for a pruned model as for a whole one: nothing is saved."""
    trainer = tiny.trainer(tmp_path, {"lottery": {"sparsity": 0.9, "rounds": 1}})
    spent = []

    class CostReport(tiny.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            spent.append(trainer.clock.flops)

    trainer.add_callback(CostReport())
    trainer.train()
    assert spent[-1] == 8 * spent[0]
    assert int(trainer.model.bert.masks.left()) < 0.11 * trainer.model.bert.masks.size()
