"""What layer skipping refuses, when it starts, how its gates are kept, and how it remembers which layers ran."""

import pytest
import torch
from transformers import BertForMaskedLM

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.models import EffptBertForMaskedLM
from tests import tiny

from .skipping import HALF, PLAIN, gated, ragged, started

ESTIMATORS = ["ste_full", "ste_executed", "ste_reweighted", "reinforce"]


def test_gates_keep_their_precision():
    model = gated().bfloat16()
    assert {p.dtype for p in model.bert.gates.parameters()} == {torch.float32}
    assert model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    loss = model(**ragged()).loss
    (loss + model.methods[0].penalty(model.bert)).backward()
    assert torch.isfinite(model.bert.gates.out.bias.grad).all()
    model = gated()
    model(**ragged())
    exact = torch.stack(model.bert.gates._pass.logits)
    with torch.autocast("cpu", torch.bfloat16):
        model(**ragged())
    mixed = torch.stack(model.bert.gates._pass.logits)
    assert mixed.dtype == torch.float32
    assert torch.allclose(exact, mixed, atol=0.02)


def test_gates_start_open_and_draw_from_a_generator_of_their_own():
    torch.manual_seed(3)
    tiny.model()
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    model = tiny.model({"layerskip": {}}, **PLAIN).train()
    assert torch.equal(expected, torch.get_rng_state())
    started(model)
    model(**ragged())
    opened = torch.stack(model.bert.gates._pass.logits).sigmoid()
    assert 0.9 < opened.min()
    assert opened.max() < 0.99


def test_stock_weights_get_fresh_gates_and_checkpoints_keep_theirs(tmp_path):
    torch.manual_seed(9)
    model = tiny.model({"layerskip": {}})
    gates = model.bert.gates
    with torch.no_grad():
        for tensor in (gates.rates, gates.executed, gates.baseline, gates.out.bias, gates.cell.weight_hh):
            tensor.uniform_()
        gates.steps.fill_(17)
    model.save_pretrained(tmp_path / "own")
    again = type(model).from_pretrained(tmp_path / "own")
    tiny.assert_same_weights(model, again)

    tiny.model().export().save_pretrained(tmp_path / "stock")
    config = tiny.config({"layerskip": {}})
    fresh = EffptBertForMaskedLM.from_pretrained(tmp_path / "stock", config=config).bert.gates
    assert fresh.out.bias.sigmoid().item() == pytest.approx(0.95)
    assert fresh.rates.eq(1).all()
    assert fresh.steps.item() == 0
    assert fresh.cell.weight_hh.abs().max() < 0.32
    half = EffptBertForMaskedLM.from_pretrained(tmp_path / "own", dtype=torch.bfloat16).train()
    started(half)
    assert torch.isfinite(half(**ragged()).loss)


def test_a_copy_can_be_made_at_any_moment():
    """Counting, timing and exporting copy the model, also between forward and backward."""
    model = gated(HALF)
    model(**ragged())
    assert type(model.export()) is BertForMaskedLM
    assert model.methods[0].penalty(model.bert) is not None


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 4])}, "cu_seq_lens"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(8, 12, 32)}, "inputs_embeds"),
    ],
)
def test_inputs_that_cannot_be_gathered_are_refused(inputs, named):
    with pytest.raises(EffptError, match=named):
        gated(HALF)(**{**ragged(), **inputs})


def test_attention_masks_that_cannot_be_gathered_are_refused():
    model = gated(HALF)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(EffptError, match="flex_attention"):
        model.bert(ragged()["input_ids"])


def test_reinforce_needs_the_losses():
    model = gated(HALF, estimator="reinforce")
    model.bert(ragged()["input_ids"])
    with pytest.raises(EffptError, match="has given no losses of rows"):
        model.methods[0].penalty(model.bert)


def test_starts_at_a_tenth_or_after_the_last_growth():
    for ledger, start in (({}, 0.1), ({"stacking": {"depth": 1, "at": [0.3, 0.6]}}, 0.6)):
        model = tiny.model({"layerskip": {}, **ledger})
        (skip,) = (method for method in model.methods if method.name == "layerskip")
        skip.schedule(model.bert, RunContext(5, start - 0.01, seed=1))
        assert stack_of(model.bert).router is None
        skip.schedule(model.bert, RunContext(6, start, seed=1))
        assert stack_of(model.bert).router is model.bert.gates


def test_rates_are_the_mean_over_steps_at_first_and_a_moving_average_later():
    """They decide which layers a hardened export loses."""
    model = gated(HALF)
    gates = model.bert.gates
    for open_share in (1.0, 0.5, 0.0):
        gates._sums = None
        gates._add(torch.tensor([4 * open_share, 4.0]), 4)
        gates.settle(model.bert)
    assert gates.rates[1].item() == pytest.approx(0.5)
    assert gates.rates[2].item() == pytest.approx(1.0)
    gates.steps.fill_(10_000)
    gates._add(torch.tensor([4.0, 4.0]), 4)
    gates.settle(model.bert)
    assert gates.rates[1].item() == pytest.approx(0.5 + 0.5 * 0.01)
