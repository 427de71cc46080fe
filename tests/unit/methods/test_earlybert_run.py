"""EarlyBERT in a run: when the search ends, what is rewound or kept, how it resumes, and how it is with others."""

import pytest
import torch

from hf_effpt.core import gates as gates_module
from hf_effpt.core.anatomy import attention_of, feed_forward_of, layers_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import gates_of
from hf_effpt.core.ticket import Ticket
from hf_effpt.core.width import head_columns, widths_of
from hf_effpt.methods.earlybert import method as earlybert_module
from hf_effpt.methods.earlybert.search import Search
from hf_effpt.training.optimization import UncorrectedAdamW
from hf_effpt.training.ticket_search import EarlyBertTrainer
from tests import tiny

LENGTH = {"max_search_steps": 0.4}  # drawn after 4 of 8 steps
LONG = {**LENGTH, "every": 1, "epsilon": 0.0, "window": 5}  # and not before


class Watch(tiny.TrainerCallback):
    """Copies the model and the optimizer's state before and after step `step`, when the model is cut."""

    def __init__(self, trainer, step=4):
        self.trainer, self.step = trainer, step
        method = next(method for method in trainer.methods if method.name == "earlybert")
        advance = method.advance

        def watched(backbone, context):
            if context.step == self.step:
                self.before = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
                self.moments = self.state()
            changed = advance(backbone, context)
            if context.step == self.step:
                self.changed = changed
                self.after = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
                self.left = {
                    id(p): {key: value.clone() for key, value in state.items()}
                    for p, state in context.optimizer.state.items()
                }
                self.names = {name: id(p) for name, p in trainer.model.named_parameters()}
            return changed

        method.advance = watched

    def state(self):
        state = self.trainer.optimizer.state
        return {
            name: {key: value.clone() for key, value in state[parameter].items()}
            for name, parameter in self.trainer.model.named_parameters()
            if parameter in state
        }


def made(out, settings=LONG, cls=EarlyBertTrainer, others=None, **changes):
    return tiny.trainer(out, {"earlybert": settings, **(others or {})}, cls=cls, **changes)


def kept_of(name, tensor, ticket):
    """The part of a whole layer's parameter that a ticket keeps."""
    parts = name.split(".")
    if "layer" not in parts:
        return tensor
    layer = int(parts[parts.index("layer") + 1])
    heads, neurons = head_columns(ticket.heads[layer], 16), torch.tensor(ticket.neurons[layer])
    if ".self." in name:
        return tensor.index_select(0, heads)
    if name.endswith("attention.output.dense.weight"):
        return tensor.index_select(1, heads)
    if ".intermediate." in name:
        return tensor.index_select(0, neurons)
    return tensor.index_select(1, neurons) if name.endswith("output.dense.weight") else tensor


def test_a_rewind_is_to_the_start_bit_for_bit(tmp_path):
    trainer = made(tmp_path)
    start = tiny.weights(trainer.model)
    watch = Watch(trainer)
    trainer.train()
    ticket = trainer.ticket
    assert watch.changed
    assert ticket.widths == widths_of(trainer.model.bert) == trainer.model.config.layer_widths
    for name, identity in watch.names.items():
        assert torch.equal(watch.after[name], kept_of(name, start[name], ticket)), name
        assert not torch.equal(watch.before[name], start[name]), name
        assert identity not in watch.left
    assert not any("width_gates" in name or "snapshot" in name for name in trainer.model.state_dict())
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {4}  # those since
    assert trainer.methods[0].penalty(trainer.model.bert) is None


def test_the_learning_rate_runs_anew_after_a_rewind(tmp_path):
    rates = {}
    for weights in ("rewind", "keep"):
        trainer = made(tmp_path, {**LONG, "weights": weights})
        trainer.train()
        rates[weights] = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        (event,) = trainer.model.config.events
        assert event.get("span") == ([0.5, 1.0] if weights == "rewind" else None)
        assert f"weights {'rewound' if weights == 'rewind' else 'kept'}" in event["what"]
    assert rates["rewind"][:4] == rates["keep"][:4]
    assert rates["rewind"][4:] == pytest.approx([0.0, 1e-3, 2e-3 / 3, 1e-3 / 3])
    assert rates["keep"][4:] == pytest.approx([1e-3 * share / 6 for share in (4, 3, 2, 1)])


def test_kept_weights_have_their_gates_and_their_state(tmp_path):
    trainer = made(tmp_path, {**LONG, "weights": "keep", "gate_learning_rate": 0.3})
    assert trainer.model.snapshot is None
    watch = Watch(trainer)
    trainer.train()
    ticket = trainer.ticket
    for name, identity in watch.names.items():
        before = watch.before[name]
        if name.endswith("output.dense.weight"):
            kind = "heads" if "attention" in name else "neurons"
            gate = watch.before[f"bert.width_gates.{kind}.{name.split('.')[3]}"]
            assert (gate - 1).abs().max() > 0.1
            before = before * gate.repeat_interleave(before.shape[1] // len(gate))
        assert torch.equal(watch.after[name], kept_of(name, before, ticket)), name
        state, whole = watch.left[identity], watch.moments[name]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key], kept_of(name, whole[key], ticket)), (name, key)
        assert state["step"] == whole["step"] == 4
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {8}


def test_gates_have_a_group_of_their_own_that_stays(tmp_path):
    trainer = made(tmp_path, {**LONG, "gate_learning_rate": 0.3}, weight_decay=0.5)
    gates = list(gates_of(trainer.model.bert).parameters())
    assert not any("width_gates" in name for name in trainer.get_decay_parameter_names(trainer.model))
    trainer.create_optimizer()
    *others, own = trainer.optimizer.param_groups
    assert own["params"] == gates
    assert (own["lr"], own["weight_decay"]) == (0.3, 0.0)
    assert not {id(gate) for gate in gates} & {id(p) for group in others for p in group["params"]}
    trainer.optimizer = None
    trainer.train()
    assert [len(group["params"]) for group in trainer.optimizer.param_groups][-1] == 0
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}


def test_the_search_ends_when_all_of_the_window_agree(tmp_path, monkeypatch):
    drawn = []
    distances = iter([None, None, (0.0, 0.2), (0.2, 0.0), (0.1, 0.1)])
    monkeypatch.setattr(Search, "distances", lambda self, order: drawn.append(order) or next(distances))
    trainer = made(tmp_path, {"max_search_steps": 0.9, "every": 1, "epsilon": 0.1})
    trainer.train()
    assert drawn == [(0, 1, 2, 3)] * 5
    (event,) = trainer.model.config.events
    assert event["step"] == 5
    assert "after 5 steps of search (masks differ in 0.100 of heads and 0.100 of neurons)" in event["what"]


def test_masks_are_made_only_when_they_are_due(tmp_path, monkeypatch):
    looks = []
    score = earlybert_module.gate_scores
    monkeypatch.setattr(earlybert_module, "gate_scores", lambda backbone: looks.append(1) or score(backbone))
    trainer = made(tmp_path, {"max_search_steps": 7, "every": 3})
    trainer.train()
    assert len(looks) == 3  # after steps 3 and 6, and for the ticket after step 7
    assert trainer.model.config.events[0]["step"] == 7
    assert "too few masks to compare" in trainer.model.config.events[0]["what"]


@pytest.mark.parametrize(("weights", "places"), [("rewind", (3, 4, 5)), ("keep", (1, 4))])
def test_resumed_in_the_search_and_after_it(tmp_path, weights, places):
    """Bit for bit, with all that the model holds, before, at and after the draw."""
    settings = {**LONG, "weights": weights, "gate_learning_rate": 0.1}
    straight = made(tmp_path, settings, dropout=0.1, saved=places)
    straight.train()
    for at in places:
        resumed = made(tmp_path / "resumed", settings, dropout=0.1)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        assert straight.model.state_dict().keys() == resumed.model.state_dict().keys()
        tiny.assert_same_weights(straight.model, resumed.model)
        assert straight.ticket == resumed.ticket
        assert straight.lr_scheduler.get_last_lr() == resumed.lr_scheduler.get_last_lr()


@pytest.mark.parametrize("weights", ["rewind", "keep"])
def test_search_and_train_are_train(tmp_path, weights):
    settings = {**LONG, "weights": weights}
    whole = made(tmp_path / "whole", settings, dropout=0.1)
    whole.train()
    parts = made(tmp_path / "parts", settings, dropout=0.1)
    ticket = parts.search()
    assert isinstance(ticket, Ticket)
    assert parts.state.global_step == 4
    assert (tmp_path / "parts" / "checkpoint-4").is_dir()
    assert parts.search() == ticket  # it is there already
    parts.train()
    assert parts.state.global_step == 8
    tiny.assert_same_weights(whole.model, parts.model)
    assert parts.clock.flops == whole.clock.flops
    parts.save_model()
    saved = Ticket.load(tmp_path / "parts" / "ticket.json")
    assert saved == ticket == whole.ticket
    assert saved.drawn_by["ticket"] == "earlybert"
    assert saved.drawn_by["step"] == 4


def test_a_search_keeps_its_ticket_where_an_earlier_checkpoint_is_better(tmp_path, monkeypatch):
    tiny.plant_losses(monkeypatch, [5.0, 6.0, 4.0, 3.0, 3.0])
    best = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    trainer = made(tmp_path, LONG, load_best_model_at_end=True, **best)
    ticket = trainer.search()
    assert isinstance(ticket, Ticket)
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    trainer.train()
    assert trainer.state.global_step == 8
    assert trainer.facts["best"] == {"step": 8, "loss": 3.0}
    assert trainer.ticket == ticket


def test_a_search_that_found_nothing_says_so(tmp_path):
    trainer = made(tmp_path, {"max_search_steps": 0.9}, budget="1s")
    trainer.add_callback(tiny.StopAfter(1))
    with pytest.raises(EffptError, match="before a ticket was drawn"):
        trainer.search()


@pytest.mark.parametrize("ticket", ["random", "bad", "magnitude", "michel"])
def test_controls_run_through_the_same_code(tmp_path, ticket):
    trainer = made(tmp_path, {**(LONG if ticket in ("random", "bad") else LENGTH), "ticket": ticket})
    watch = Watch(trainer)
    trainer.train()
    assert watch.changed
    assert f"drew a ticket by {ticket} after 4 steps" in trainer.model.config.events[0]["what"]
    learned = ticket in ("random", "bad")
    assert any("width_gates" in name for name in watch.before) == learned
    searched = made(tmp_path)
    searched.train()
    if learned:
        assert trainer.ticket.widths == searched.ticket.widths
        assert trainer.ticket.neurons != searched.ticket.neurons
    assert sum(width for _, width in trainer.ticket.widths) == sum(width for _, width in searched.ticket.widths) == 152
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.05  # the narrow model learns
    for layer in layers_of(trainer.model.bert).children():  # nothing that is left is a row of zeros
        for linear in (*attention_of(layer).inner, attention_of(layer).output, *feed_forward_of(layer)):
            assert (linear.weight != 0).any(dim=1).all()


def test_michel_is_charged_and_leaves_the_random_numbers_alone(tmp_path, monkeypatch):
    costs = {}
    for batches in (8, 1):
        monkeypatch.setattr("hf_effpt.core.gates.BATCHES", batches)
        trainer = made(tmp_path, {**LENGTH, "ticket": "michel"}, dropout=0.1)
        states = []
        importance = gates_module.importance
        monkeypatch.setattr(
            "hf_effpt.core.gates.importance",
            lambda *given, of=importance, states=states: (states.append(torch.get_rng_state()), of(*given),
                                                          states.append(torch.get_rng_state()))[1],
        )  # fmt: skip
        trainer.train()
        costs[batches] = trainer.clock
        assert torch.equal(*states)
        assert trainer.model.training
    rows = 4 * tiny.LENGTH
    assert costs[8].tokens - costs[1].tokens == 7 * rows
    assert costs[8].flops > costs[1].flops


# Beside others.


def test_after_stacking_the_rewind_is_to_the_grown_model(tmp_path):
    growing = {"stacking": {"depth": 1, "at": [0.3, 0.4]}}
    trainer = made(tmp_path, {"max_search_steps": 0.2, "every": 1}, others=growing)
    start = tiny.weights(trainer.model)
    trainer.add_callback(grown := Grown(trainer))
    watch = Watch(trainer, step=5)
    trainer.train()
    assert [event["method"] for event in trainer.model.config.events] == ["stacking", "stacking", "earlybert"]
    assert [event["step"] for event in trainer.model.config.events] == [3, 4, 5]
    for name in watch.names:
        assert torch.equal(watch.after[name], kept_of(name, grown.weights[name], trainer.ticket)), name
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(watch.after[name], kept_of(name, start[name], trainer.ticket))


class Grown(tiny.TrainerCallback):
    """Copies the weights after step 4, when the model has its full depth."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.weights = tiny.weights(self.trainer.model)


def test_notes_are_rewound_with_the_weights(tmp_path):
    trainer = made(tmp_path, others={"tnf": {"k": 2, "min_count": 5, "max_count": 7}})
    notes = trainer.model.bert.notes.vectors.clone()
    watch = Watch(trainer)
    trainer.train()
    assert torch.equal(watch.after["bert.notes.vectors"], notes)
    assert not torch.equal(watch.before["bert.notes.vectors"], notes)


@pytest.mark.parametrize("other", ["layerdrop", "layerskip"])
def test_layers_are_left_out_only_after_the_search(tmp_path, other):
    settings = {"layerdrop": {"p": 0.9}, "layerskip": {"target": 0.4}}[other]
    runs = []
    for others in ({}, {other: settings}):
        trainer = made(tmp_path, others=others, budget="10steps")
        trainer.add_callback(tiny.StopAfter(4))
        trainer.train()
        runs.append(trainer.model.state_dict())
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


def test_beside_a_method_that_is_off_it_is_itself(tmp_path):
    runs = []
    for others in ({}, {"layerdrop": {"p": 0.0}}):
        trainer = made(tmp_path, others=others, dropout=0.1)
        trainer.train()
        runs.append(tiny.weights(trainer.model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_only_the_main_model_is_cut(tmp_path, objective):
    trainer = made(tmp_path, cls=tiny.EffptTrainer, objective=objective)
    generator = {name: p for name, p in tiny.weights(trainer.model).items() if name.startswith("generator.")}
    watch = Watch(trainer)
    trainer.train()
    assert sum(width for _, width in trainer.model.config.layer_widths) == 152
    for name, weight in generator.items():
        assert torch.equal(watch.after[name], weight), name
        assert trainer.model.get_parameter(name).shape == weight.shape
    stock = trainer.model.export()
    assert type(stock).__module__.startswith("transformers.")
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    assert torch.allclose(stock(ids).logits, trainer.model.eval()(ids).logits, atol=1e-5)


# What cannot follow.


def test_a_new_run_does_not_go_on_with_an_old_search(tmp_path):
    settings = {**LONG, "after": 0.5, "max_search_steps": 0.25}
    first = made(tmp_path, settings, saved=[5])
    first.add_callback(tiny.StopAfter(5))
    first.train()
    model = type(first.model).from_pretrained(tmp_path / "checkpoint-5")
    assert model.bert.ticket_search.since == 4
    assert int(model.bert.ticket_search.count) == 1
    gates_of(model.bert).on = True
    batch = tiny.batch(4, objective="mlm")
    before = model.eval()(**batch).loss.item()
    again = EarlyBertTrainer(model, tiny.arguments(tmp_path / "again"), train_dataset=first.train_dataset,
                             processing_class=first.processing_class)  # fmt: skip
    assert again.model.eval()(**batch).loss.item() == pytest.approx(before, abs=1e-5)
    assert model.bert.ticket_search.since is None
    assert int(model.bert.ticket_search.count) == 0
    assert all((gate == 1).all() for gate in gates_of(model.bert).parameters())
    again.train()
    assert again.model.config.events[-1]["step"] == 6


def test_optimizers_that_cannot_be_cut_are_refused(tmp_path):
    with pytest.raises(EffptError, match=r"`Adafactor` cannot follow.*adamw_torch"):
        made(tmp_path, optim="adafactor").create_optimizer()
    trainer = made(tmp_path, bias_correction=False)
    trainer.train()
    assert type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)) is UncorrectedAdamW


def test_a_search_as_long_as_the_run_is_refused(tmp_path):
    with pytest.raises(EffptError, match="until step 8, and the budget is 8 steps"):
        made(tmp_path, {"max_search_steps": 8})
