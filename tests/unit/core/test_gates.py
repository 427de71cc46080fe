"""Gates of heads and neurons: what they multiply, what they do not change, and what they say of importance."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core.anatomy import attention_of, feed_forward_of, layers_of
from hf_effpt.core.gates import WidthGates, gates_of, importance, magnitude, opened
from hf_effpt.core.ticket import Ticket
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


def rows_of(batch):
    return [{name: values[row : row + 1] for name, values in batch.items()} for row in range(len(batch["input_ids"]))]


def importance_of(model, batches):
    return importance(model.backbone, iter(batches), lambda batch: model(**batch).loss, lambda *_: nullcontext())


def row_by_row(model, batches):
    """|dL/dgate| of the loss of each row by itself, for the heads and the neurons of each layer, mean over rows."""
    sums, rows = None, [row for batch in batches for row in rows_of(batch)]
    for row in rows:
        with opened(model.backbone) as gates:
            every = [*gates.heads, *gates.neurons]
            found = [
                gradient.abs() for gradient in torch.autograd.grad(model(**row).loss, every, materialize_grads=True)
            ]
            sums = found if sums is None else [total + of for total, of in zip(sums, found, strict=True)]
    means = [total / len(rows) for total in sums]
    return means[:4], means[4:]


def assert_is_importance(found, heads, neurons):
    for layer, of in enumerate(heads):
        assert torch.allclose(found[0][layer], of / of.norm(), atol=1e-4), layer
        assert torch.allclose(found[1][layer], neurons[layer], rtol=1e-3, atol=1e-7), layer


def test_importance_is_the_mean_over_rows_of_the_absolute_slope_of_each():
    """Rows have one to four labels, and slopes of different signs, which would cancel in a mean."""
    model = wide().eval()
    batches = [padded(), padded(rows=3, length=7)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = importance_of(model, batches)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert gates_of(model.bert) is None
    assert_is_importance(found, *row_by_row(model, batches))
    with opened(model.bert) as gates:
        of_mean = torch.autograd.grad(model(**batches[0]).loss, gates.neurons[0])[0].abs()
    assert of_mean.mean() < 0.8 * found[1][0].mean()


def test_importance_of_one_gate_by_differences():
    model, step = wide().eval(), 0.03
    rows, losses = rows_of(padded()), []
    for value in (1 - step, 1 + step):
        with opened(model.bert) as gates, torch.no_grad():
            gates.neurons[2][5] = value
            losses.append(torch.stack([model(**row).loss.double() for row in rows]))
    slope = ((losses[1] - losses[0]) / (2 * step)).abs().mean()
    assert importance_of(model, [padded()])[1][2][5].item() == pytest.approx(slope.item(), rel=0.02)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        *((name, {}) for name in ("electra", "electra_15", "replace_mlm", "all_tokens_mlm", "mcbert")),
        ("mcbert", {"candidates_at": "masked"}),
    ],
)
def test_importance_is_that_of_the_main_model_of_every_objective(objective, settings):
    torch.manual_seed(3)
    model = tiny.joint(objective, **settings).eval()
    batch = tiny.batch(4, objective=objective)
    batch["attention_mask"] = (torch.arange(tiny.LENGTH) < torch.tensor([16, 12, 8, 16])[:, None]).long()
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    assert_is_importance(importance_of(model, [batch]), *row_by_row(model, [batch]))


def test_importance_is_of_the_layers_that_run_first_to_last():
    model = wide(layer_order=[3, 1]).eval()
    heads, neurons = row_by_row(model, [padded()])
    assert not heads[0].any()
    assert_is_importance(importance_of(model, [padded()]), [heads[3], heads[1]], [neurons[3], neurons[1]])
    cut_width(model.bert, Ticket(((), (0, 2)), ((1, 2), tuple(range(16))), ((4, 16),) * 2))
    assert [[len(scores) for scores in of] for of in importance_of(model, [padded()])] == [[0, 2], [2, 16]]


def test_one_backward_pass_gives_the_slopes_of_all_rows():
    """It costs less than a training pass, which needs gradients of weights, too."""
    model, batch, passes = wide().eval(), padded(), []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    with FlopCounterMode(display=False) as counter:
        importance_of(model, [batch])
    handle.remove()
    assert len(passes) == 1
    with FlopCounterMode(display=False) as training:
        model(**batch).loss.backward()
    assert 0.6 < counter.get_total_flops() / training.get_total_flops() < 0.8


def test_magnitude_is_the_norm_of_all_weights_of_a_head_or_neuron():
    model = wide()
    layer = layers_of(model.bert)[1]
    attention, block = attention_of(layer), feed_forward_of(layer)
    with torch.no_grad():
        for linear in (*attention.inner, attention.output, block.up, block.down):
            linear.weight.zero_()
        attention.inner[0].weight[8:16, 0] = 1.0  # of the second head
        attention.output.weight[0, 24] = -3.0  # of the fourth
        block.up.weight[2, 1], block.down.weight[4, 2] = 3.0, -4.0
    heads, neurons = magnitude(model.bert)
    assert heads[1].tolist() == pytest.approx([0.0, 8**0.5, 0.0, 3.0])
    assert neurons[1].tolist() == pytest.approx([0.0, 0.0, 5.0] + [0.0] * 13)
