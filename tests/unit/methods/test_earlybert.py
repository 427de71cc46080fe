"""EarlyBERT without a run: settings, gates, penalty, masks, tickets and the controls."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import BertForMaskedLM

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import gate_scores, gates_of
from hf_effpt.core.registry import build_methods
from hf_effpt.core.ticket import Ticket
from hf_effpt.core.width import cut_width, widths_of
from hf_effpt.methods.earlybert import EarlyBert
from hf_effpt.methods.earlybert.drawing import any_like, best, worst
from hf_effpt.methods.earlybert.search import Search
from hf_effpt.models import (
    EffptBertForMaskedLM,
    EffptBertForSequenceClassification,
    EffptElectraForSequenceClassification,
)
from tests import tiny
from tests.stock import assert_learns_as_stock

TICKET = Ticket(((0,), (1,), (0, 1), (1,)), (tuple(range(8)),) * 4, ((2, 64),) * 4)


def searching(**settings):
    torch.manual_seed(4)
    model = tiny.model({"earlybert": settings})
    model.methods[0].schedule(model.bert, RunContext(0, 0.0, seed=7))
    return model


# Settings.


def test_tickets_of_other_models_are_refused(tmp_path):
    path = str(TICKET.save(tmp_path / "ticket.json"))
    with pytest.raises(EffptError, match="drawn from layers of 4 times 2 heads and 64 neurons"):
        tiny.model({"earlybert": {"ticket": path}}, num_hidden_layers=3)
    with pytest.raises(EffptError, match="`stacking` would copy its layers"):
        tiny.model({"earlybert": {"ticket": path}, "stacking": {"depth": 1, "at": [0.3, 0.7]}})


def test_others_wait_for_its_search():
    for waiting in ("layerdrop", "layerskip"):
        ledger = {waiting: {}, "earlybert": {"max_search_steps": 0.2}, "stacking": {"depth": 2, "at": [0.3]}}
        found = {method.name: method for method in build_methods(ledger, tiny.config())}
        assert found["earlybert"]._start == 0.3
        assert found[waiting]._start == 0.5


# Gates.


@pytest.mark.parametrize("methods", [None, {"earlybert": {"after": 0.5, "weights": "keep"}}])
def test_off_and_before_its_start_it_is_stock_bit_for_bit(methods):
    stock, model = assert_learns_as_stock(methods, own="width_gates")
    if methods is None:
        assert set(model.state_dict()) == set(stock.state_dict())


def test_one_gate_for_each_head_and_each_neuron():
    gates = gates_of(searching().bert)
    assert [gate.shape for gate in gates.heads] == [(2,)] * 4
    assert [gate.shape for gate in gates.neurons] == [(64,)] * 4
    assert all(gate.dtype == torch.float32 and (gate == 1).all() for gate in gates.parameters())


def test_the_penalty_is_a_sum_whose_gradient_is_the_sign():
    model = searching(l1=0.25)
    gates = gates_of(model.bert)
    with torch.no_grad():
        gates.heads[0].copy_(torch.tensor([-2.0, 0.0]))
    penalty = model.methods[0].penalty(model.bert)
    assert penalty.item() == pytest.approx(0.25 * (2.0 + 0.0 + 3 * 2 + 4 * 64))
    penalty.backward()
    assert gates.heads[0].grad.tolist() == [-0.25, 0.0]
    assert (gates.neurons[3].grad == 0.25).all()
    assert all(p.grad is None for name, p in model.named_parameters() if "width_gates" not in name)


def test_only_layers_that_run_are_penalised_and_cut():
    model = tiny.model({"earlybert": {"l1": 1.0}}, layer_order=[0, 2])
    assert model.methods[0].penalty(model.bert).item() == pytest.approx(2 * 2 + 2 * 64)
    ticket = best(gate_scores(model.bert), 0.5, 0.5)
    assert ticket.widths == [[1, 56], [1, 8]]  # of equals the first, but no layer is emptied
    assert worst(gate_scores(model.bert), ticket).widths == ticket.widths
    cut_width(model.bert, ticket)
    assert widths_of(model.bert) == [[1, 56], [2, 64], [1, 8], [2, 64]]


def test_with_a_weighted_loss_the_penalty_keeps_its_share_of_the_gradient():
    """50 times the loss and 50 times the penalty, of the main model only; by itself that has a plain loss again."""
    shares = []
    for weight in (1.0, 50.0):
        torch.manual_seed(3)
        model = tiny.joint("electra", {"earlybert": {}}, loss_weight=weight)
        gate = gates_of(model.electra).neurons[1]
        (main,) = torch.autograd.grad(weight * model(**tiny.batch(4)).main_loss, gate)
        (pulled,) = torch.autograd.grad(model.methods[0].penalty(model.electra), gate)
        shares.append((pulled.norm() / main.norm()).item())
        assert pulled[0].item() == pytest.approx(weight * 1e-4)
        assert gates_of(model.generator.electra) is None
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)
    alone = EffptElectraForSequenceClassification(model.config)
    assert alone.methods[0].penalty(alone.electra).item() == pytest.approx(1e-4 * 4 * 66)


def test_learned_gates_count_in_an_export_in_mid_search():
    model = searching(after=0.5).eval()
    with torch.no_grad():
        for gate in gates_of(model.bert).parameters():
            gate.uniform_(-1.0, 2.0)
    gates_of(model.bert).on = True
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    stock = model.export()
    assert type(stock) is BertForMaskedLM
    assert torch.allclose(stock(ids).logits, model(ids).logits, atol=1e-6)
    assert gates_of(model.bert).neurons[0].std() > 0.1


# Masks and tickets.


def search_of(*masks, window=2, neurons=None):
    search = Search(window, 1, 4, 4, begun=True)
    for place, mask in enumerate(masks):
        kept = tuple(index for index, bit in enumerate(mask) if bit == "1")
        others = kept if neurons is None else tuple(i for i, bit in enumerate(neurons[place]) if bit == "1")
        search.note(Ticket((kept,), (others,), ((4, 4),)), [0])
    return search


def test_the_distance_of_masks_by_hand():
    assert search_of("1100").distances([0]) is None
    assert search_of("1100", "1010").distances([0]) == (0.5, 0.5)
    assert search_of("1100", "1010", "1010").distances([0]) == (0.0, 0.0)
    assert search_of("1100", "1010", neurons=("1100", "0011")).distances([0]) == (0.5, 1.0)
    # all of the window, and not only the one before
    assert search_of("1100", "1010", "1010", window=3).distances([0]) == (0.5, 0.5)


def test_layers_that_do_not_run_have_no_part_in_the_distance():
    search = Search(2, 2, 4, 4, begun=True)
    for kept in ((0, 1), (0, 2)):
        search.note(Ticket((kept,), (kept,), ((4, 4),)), [1])
    assert search.distances([1]) == (0.5, 0.5)
    assert search.distances([0, 1]) == (0.25, 0.25)


def test_gates_are_ranked_by_their_size_whatever_the_sign():
    model = searching()
    gates = gates_of(model.bert)
    with torch.no_grad():
        gates.heads[0].copy_(torch.tensor([0.2, -0.9]))
        gates.neurons[1].fill_(-3.0)
    ticket = best(gate_scores(model.bert), 0.5, 0.5)
    assert ticket.heads == ((1,), (0,), (0,), (0,))
    assert [width for _, width in ticket.widths] == [56, 56, 8, 8]  # the second layer's, and the first of the others


def test_controls_are_as_wide_as_the_ticket_and_a_function_of_seed_and_step():
    model = searching()
    gates = gates_of(model.bert)
    with torch.no_grad():
        for gate in gates.parameters():
            gate.uniform_(generator=torch.Generator().manual_seed(len(gate)))
    scores = gate_scores(model.bert)
    good = best(scores, 0.5, 0.6)
    state = torch.get_rng_state()
    bad, other = worst(scores, good), any_like(good, 7, 40)
    assert good.widths == bad.widths == other.widths
    assert len({good.neurons, bad.neurons, other.neurons}) == 3
    assert any_like(good, 7, 40) == other
    assert any_like(good, 7, 41) != other
    assert any_like(good, 8, 40) != other
    assert torch.equal(state, torch.get_rng_state())
    layer = scores[1][0]
    assert layer[list(bad.neurons[0])].max() <= layer[[i for i in range(64) if i not in bad.neurons[0]]].min()
    assert bad.heads == tuple(tuple({0, 1} - set(kept)) for kept in good.heads)


def test_a_saved_ticket_is_cut_before_the_run(tmp_path):
    origin = {"ticket": "michel", "head_keep": 0.5, "step": 9}
    path = replace(TICKET, drawn_by=origin).save(tmp_path / "ticket.json")
    trainer = tiny.trainer(tmp_path / "run", {"earlybert": {"ticket": str(path)}}, save_strategy="steps", save_steps=4)
    plain = tiny.trainer(tmp_path / "plain")
    cut_width(plain.model.bert, TICKET)
    for name, weight in tiny.weights(plain.model).items():
        assert torch.equal(weight, trainer.model.get_parameter(name)), name
    assert trainer.model.config.events[0]["step"] == 0
    assert not trainer.methods[0].changes_parameters
    trainer.train()
    trainer.save_model()
    again = Ticket.load(tmp_path / "run" / "ticket.json")
    assert (again.heads, again.neurons, again.shape) == (TICKET.heads, TICKET.neurons, TICKET.shape)
    assert again.drawn_by == origin | {"read_from": str(path)}  # and nothing of this run's settings
    path.unlink()  # a checkpoint does not need it
    model = EffptBertForMaskedLM.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert model.config.layer_widths == TICKET.widths


def test_a_saved_ticket_is_cut_out_of_trained_weights_of_any_task(tmp_path):
    path = str(TICKET.save(tmp_path / "ticket.json"))
    tiny.model().export().save_pretrained(tmp_path / "stock")
    config = tiny.config({"earlybert": {"ticket": path}}, num_labels=2)
    model = EffptBertForSequenceClassification.from_pretrained(tmp_path / "stock", config=config)
    before = model.bert.encoder.layer[1].output.dense.weight.clone()
    data = [{"input_ids": [2, 5 + row, 3], "labels": row % 2} for row in range(8)]
    trainer = tiny.EffptTrainer(model, tiny.arguments(tmp_path, budget="2steps"), train_dataset=data)
    assert torch.equal(model.bert.encoder.layer[1].output.dense.weight, before[:, :8])
    trainer.train()
    assert model.config.layer_widths == TICKET.widths


def test_settings_are_json():
    method = EarlyBert(max_search_steps=0.5, window=3)
    assert EarlyBert(**json.loads(json.dumps(method.settings()))) == method
    assert EarlyBert(max_search_steps=5).settles_at == math.inf


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.8, 1.0), (1.0, 0.99)])
def test_a_search_for_a_ticket_of_everything_is_refused(shares):
    """Also where the shares are rounded to all, of 2 heads and 256 neurons in multiples of 8."""
    settings = dict(zip(("head_keep", "ffn_keep"), shares, strict=True))
    with pytest.raises(EffptError, match="`earlybert` has nothing to search: `head_keep` "):
        build_methods({"earlybert": settings}, tiny.config())
    build_methods({"earlybert": settings | {"ffn_keep": 0.96}}, tiny.config())
