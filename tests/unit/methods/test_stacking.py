"""The deciding tests of progressive stacking."""

import pytest
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from tests import tiny

LEDGER = {"stacking": {"depth": 2, "at": [0.5]}}


def grown():
    model = tiny.model(LEDGER).eval()
    ids = torch.randint(5, tiny.VOCAB, (2, 8))
    shallow = model.bert(ids).last_hidden_state
    model.methods[0].advance(model.bert, RunContext(4, 0.5))
    return model, ids, shallow


def test_shallow_output_is_in_the_middle_of_the_deep_one():
    model, ids, shallow = grown()
    deep = model.bert(ids, output_hidden_states=True)
    assert torch.equal(deep.hidden_states[2], shallow)
    assert not torch.allclose(deep.last_hidden_state, shallow, atol=1e-3)


def test_copies_share_no_storage_and_the_decoder_stays_tied():
    model, _, _ = grown()
    pointers = [p.data_ptr() for p in stack_of(model.bert).parameters()]
    assert len(set(pointers)) == len(pointers)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    for source, copy in ((0, 2), (1, 3)):
        pairs = zip(stack_of(model.bert)[source].parameters(), stack_of(model.bert)[copy].parameters(), strict=True)
        assert all(torch.equal(left, right) for left, right in pairs)


def test_copies_keep_their_own_layer_index():
    model, _, _ = grown()
    assert [layer.attention.self.layer_idx for layer in stack_of(model.bert).children()] == [0, 1, 2, 3]


def test_layers_not_reached_have_no_state_and_do_not_decay(tmp_path):
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.99]}}, weight_decay=0.5, budget="4steps")
    before = tiny.weights(trainer.model)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    for index, parameters in enumerate(layer.parameters() for layer in stack_of(trainer.model.bert).children()):
        assert all((p in trainer.optimizer.state) == (index < 2) for p in parameters)
    assert any(not torch.equal(before[n], after[n]) for n in before if ".layer.0." in n)
    assert all(torch.equal(before[n], p) for n, p in after.items() if ".layer.3." in n)


def test_new_layers_start_with_a_consistent_optimizer_state(tmp_path):
    """Moments and step move together: with a constant gradient the first update of a copy is one learning rate."""
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.5]}}, budget="8steps")
    trainer.train()
    old, new = (next(iter(stack_of(trainer.model.bert)[index].parameters())) for index in (0, 2))
    assert trainer.optimizer.state[old]["step"] == 8
    assert trainer.optimizer.state[new]["step"] == 4


@pytest.mark.parametrize(("beta2", "zeroed"), [(0.999, 3.16), (0.98, 0.71), (0.95, 0.45)])
def test_why_the_state_must_be_consistent(beta2, zeroed):
    """First update, in learning rates, of fresh state, and of zeroed moments with the step kept."""

    def update(step):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, beta2), eps=0.0, weight_decay=0.0)
        zeros = torch.zeros(1)
        optimizer.state[weight] = {"step": torch.tensor(float(step)), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        weight.grad = torch.ones(1)
        optimizer.step()
        return -weight.item()

    assert update(0) == pytest.approx(1.0, rel=1e-4)
    assert update(100_000) == pytest.approx(zeroed, abs=0.01)


def test_learning_rate_is_continuous_over_a_growth(tmp_path):
    def rates(ledger):
        trainer = tiny.trainer(tmp_path, ledger)
        trainer.train()
        return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]

    assert rates(LEDGER) == rates(None)


def test_a_shallow_phase_costs_the_shallow_price(tmp_path):
    growing = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.5]}}, budget="8steps")
    growing.train()
    flops = {}
    for layers in (2, 4):
        plain = tiny.trainer(tmp_path, layers=layers, budget="4steps")
        plain.train()
        flops[layers] = plain.clock.flops
    assert growing.clock.flops == flops[2] + flops[4]
    assert flops[2] < 0.6 * flops[4]


def test_a_step_that_passes_two_growths_does_both():
    model = tiny.model({"stacking": {"depth": 1, "at": [0.3, 0.6]}})
    model.methods[0].advance(model.bert, RunContext(1, 0.9))
    assert stack_of(model.bert).order == (0, 1, 2, 3)
    assert len(model.config.events) == 2
