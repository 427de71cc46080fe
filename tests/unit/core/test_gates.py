"""Gates of heads and neurons: what they multiply, what they do not change, and what they say of importance."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from hf_effpt.core.anatomy import attention_of, feed_forward_of, layers_of
from hf_effpt.core.gates import WidthGates, gates_of, importance, magnitude, opened
from hf_effpt.core.width import cut_width
from hf_effpt.models import EffptBertForMaskedLM
from tests import tiny

from .cutting import TICKET, mask, padded, wide


def gated(model, seed=None, on=True):
    gates = WidthGates(model.bert)
    gates.attach(model.bert)
    gates.on = on
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for gate in gates.parameters():
                gate.copy_(torch.randn(gate.shape, generator=generator))
    return gates


def of_weights(model):
    return {name: p.grad for name, p in model.named_parameters() if "width_gates" not in name}


@pytest.mark.parametrize("on", [True, False])
def test_open_gates_change_nothing(on):
    plain, model = wide(), wide()
    gated(model, on=on)
    losses = [each(**padded()).loss for each in (plain, model)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for name, gradient in of_weights(plain).items():
        assert torch.allclose(gradient, of_weights(model)[name], atol=1e-6), name
        assert on or torch.equal(gradient, of_weights(model)[name])
    assert all((gate.grad is not None) == on for gate in gates_of(model.bert).parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_gate_multiplies_what_its_head_or_neuron_puts_out(attention):
    plain, model = wide(attention), wide(attention)
    gates = gated(model, seed=1)
    for index, layer in enumerate(layers_of(plain.bert).children()):
        heads, neurons = gates.heads[index].repeat_interleave(8), gates.neurons[index]
        attention_of(layer).output.register_forward_pre_hook(lambda _, args, c=heads: (args[0] * c,))
        feed_forward_of(layer).down.register_forward_pre_hook(lambda _, args, c=neurons: (args[0] * c,))
    for given in (padded(), tiny.batch(4, objective="mlm")):  # the last layer at all positions, and at the masked ones
        assert torch.allclose(plain(**given).loss, model(**given).loss, atol=2e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_folded_and_cut_are_the_same_function(attention):
    """With gates of zero for what a ticket does not keep: gated, folded, masked and cut."""
    _gated_folded_masked_and_cut(wide(attention), wide(attention), "cpu", torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_folded_and_cut_are_the_same_function_in_bf16_on_a_gpu(attention):
    """A layer without heads among them; bf16 has three digits."""
    _gated_folded_masked_and_cut(wide(attention), wide(attention), "cuda", torch.bfloat16, 0.05)


def _gated_folded_masked_and_cut(model, masked, device, dtype, atol):
    model, masked = model.to(device), masked.to(device)
    gates = gated(model, seed=2)
    with torch.no_grad():
        for index in range(4):
            for gate, kept in (
                (gates.heads[index], TICKET.heads[index]),
                (gates.neurons[index], TICKET.neurons[index]),
            ):
                gone = torch.ones(len(gate), dtype=torch.bool)
                gone[list(kept)] = False
                gate[gone] = 0.0
    inputs = {name: tensor.to(device) for name, tensor in padded().items() if name != "labels"}

    def close(a, b):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return torch.allclose(a(**inputs).logits, b, atol=atol)

    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        expected = model(**inputs).logits
    gates.fold(model.bert)
    assert close(model, expected)
    assert all((gate == 1).all() for gate in gates.parameters())
    gates.detach(model.bert)
    masked.load_state_dict(model.state_dict())
    assert close(mask(masked), expected)
    cut_width(model.bert, TICKET)
    assert close(model, expected)


def test_detached_and_retired_gates_leave_stock_modules():
    model = wide()
    names = set(model.state_dict())
    gates = gated(model, seed=1)
    assert set(model.state_dict()) - names == {
        f"bert.width_gates.{kind}.{index}" for kind in ("heads", "neurons") for index in range(4)
    }
    gates.retire(model.bert)
    assert gates_of(model.bert) is gates
    assert not list(gates.parameters())
    assert set(model.state_dict()) == names
    assert type(attention_of(layers_of(model.bert)[0]).output) is nn.Linear
    plain = wide()
    assert torch.equal(plain(**padded()).loss, model(**padded()).loss)
    gates.detach(model.bert)
    assert gates_of(model.bert) is None


def test_they_are_fp32_whatever_the_model_is():
    model = wide()
    gates = gated(model, seed=1)
    before = [gate.detach().clone() for gate in gates.parameters()]
    model.to(torch.bfloat16)
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert all(torch.equal(gate, old) for gate, old in zip(gates.parameters(), before, strict=True))
    model(**padded()).loss.backward()
    assert all(gate.grad.dtype == torch.float32 for gate in gates.parameters())


def test_weights_that_were_saved_without_gates_get_open_ones(tmp_path):
    tiny.model().export().save_pretrained(tmp_path)
    model = EffptBertForMaskedLM.from_pretrained(tmp_path, config=tiny.config({"earlybert": {}}))
    assert all((gate == 1).all() for gate in gates_of(model.bert).parameters())


def test_importance_is_the_slope_of_the_loss_by_each_gate():
    model = wide()
    batches = [padded(), padded(rows=3)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heads, neurons = importance(model.bert, iter(batches), lambda batch: model(**batch).loss, lambda _: nullcontext())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert gates_of(model.bert) is None

    def slope(kind, layer, place, step=0.03):
        total = 0.0
        for batch in batches:
            losses = []
            for value in (1 - step, 1 + step):
                with opened(model.bert) as gates, torch.no_grad():
                    getattr(gates, kind)[layer][place] = value
                    losses.append(model(**batch).loss.double())
            total += abs(losses[1] - losses[0]).item() / (2 * step) / len(batches)  # a mean over batches
        return total

    for layer in (0, 3):
        slopes = torch.tensor([slope("heads", layer, head) for head in range(4)])
        assert torch.allclose(heads[layer], slopes / slopes.norm(), atol=0.02)
        found = torch.tensor([slope("neurons", layer, neuron) for neuron in range(16)])
        assert torch.allclose(neurons[layer], found, atol=0.02 * found.max())


def test_magnitude_is_the_norm_of_all_weights_of_a_head_or_neuron():
    model = wide()
    layer = layers_of(model.bert)[1]
    attention, block = attention_of(layer), feed_forward_of(layer)
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value, attention.output, block.up, block.down):
            linear.weight.zero_()
        attention.query.weight[8:16, 0] = 1.0  # of the second head
        attention.output.weight[0, 24] = -3.0  # of the fourth
        block.up.weight[2, 1], block.down.weight[4, 2] = 3.0, -4.0
    heads, neurons = magnitude(model.bert)
    assert heads[1].tolist() == pytest.approx([0.0, 8**0.5, 0.0, 3.0])
    assert neurons[1].tolist() == pytest.approx([0.0, 0.0, 5.0] + [0.0] * 13)
