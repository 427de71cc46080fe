"""Learned layer skipping in runs: what they cost, what is resumed, measured and exported, and what goes along."""

import copy
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMaskedLM

from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.token_losses import observers_of
from hf_effpt.evaluation.held_out_loss import held_out_loss
from hf_effpt.training import reference_time_meter
from hf_effpt.training.flops import FlopCounter
from hf_effpt.training.reference_time_meter import optimizer_operation, step_operation, time_step
from tests import tiny

from .skipping import HALF, gated, lean, ran

MLM = {"objective": "mlm"}


class Lean(tiny.TrainerCallback):
    """Has gates be half open from the start of a run, so that a few steps meet all there is."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            lean(self.trainer.model, HALF)


def half_open(out, settings=None, **changes):
    trainer = tiny.trainer(out, {"layerskip": settings or {}}, **changes)
    trainer.add_callback(Lean(trainer))
    return trainer


def halved(rows=8, layers=4, estimator="ste_executed", **settings):
    """A model half of whose rows run at each gated position."""
    model = gated(HALF, layers=layers, estimator=estimator, **settings)
    model.bert.gates.forced = 0.5
    return model, tiny.batch(rows, **MLM)


@pytest.mark.parametrize("estimator", ["ste_executed", "ste_reweighted", "reinforce"])
def test_half_of_the_rows_cost_half_of_the_gated_layers(estimator):
    """Counted on a copy, and by a real step with eager attention; to compute and to mask would save nothing."""
    model, batch = halved(estimator=estimator)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as real:
        loss = model(**batch).loss
        (loss + model.methods[0].penalty(model.bert)).backward()
    counter, gates = FlopCounter(), model.bert.gates
    assert gates.share == 0.5
    assert counter.count(model, batch) == pytest.approx(real.get_total_flops(), rel=1e-4)

    def at(share):
        gates.share = share
        return counter.count(model, batch)

    none, half, every = at(0.0), at(0.5), at(1.0)
    assert half - none == (every - none) / 2
    stack_of(model.bert).router = None
    plain = counter.count(model, batch)
    assert plain < every < 1.02 * plain  # gates are paid for; so narrow a model makes much of them
    stack_of(model.bert).order = (0, 3)
    assert none == pytest.approx(counter.count(model, batch), rel=0.03)
    assert half - none == pytest.approx(0.5 * (plain - counter.count(model, batch)), rel=0.02)


def test_the_multiply_form_saves_nothing():
    model, batch = halved(estimator="ste_full")
    assert ran(model, **batch)[1] == (1, 8)
    assert model.bert.gates.share == 1.0


def test_a_share_is_counted_once(monkeypatch):
    counter, runs = FlopCounter(), []
    monkeypatch.setattr(FlopCounter, "_measure", staticmethod(lambda *given: runs.append(given[2]) or 10 * len(runs)))
    model, batch = halved()
    costs = []
    for share in (0.25, 0.5, 0.75):
        model.bert.gates.share = share
        costs.append(counter.count(model, batch))
    assert runs == [0.0, 1.0]
    assert costs == [12.5, 15.0, 17.5]


def test_a_run_is_charged_what_ran(tmp_path):
    """With the gates shut the clock is charged the two layers that ran, and the log says so."""
    trainer = half_open(
        tmp_path, {"after": 0.0}, layers=6, budget="2steps", gradient_accumulation_steps=2, counter=FlopCounter()
    )
    shares = []
    trainer.cost.counter.count = lambda model, batch: shares.append(model.bert.gates.share) or 100 * shares[-1]
    trainer.train()
    assert len(shares) == 4
    assert len(set(shares)) > 1
    assert trainer.clock.flops == pytest.approx(100 * sum(shares))
    logged = [entry["layerskip_executed"] for entry in trainer.state.log_history if "layerskip_executed" in entry]
    assert logged == pytest.approx([sum(shares[:2]) / 2, sum(shares[2:]) / 2])


@pytest.mark.parametrize(("start", "target"), [(0.9, 0.3), (0.1, 0.7)])
def test_the_penalty_takes_the_share_to_the_target(tmp_path, start, target):
    """From either side, where the task says nothing, whose gradients would be noise of this model and this text."""
    trainer = tiny.trainer(
        tmp_path, {"layerskip": {"target": target, "after": 0.0}}, layers=3, budget="45steps", optim="sgd",
        learning_rate=3.0, max_grad_norm=0.0, per_device_train_batch_size=24, logging_steps=15,
    )  # fmt: skip
    lean(trainer.model, math.log(start / (1 - start)))
    forward = trainer.model.forward

    def silent(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.loss = outputs.loss * 0.0
        return outputs

    trainer.model.forward = silent
    trainer.train()
    logged = [entry["layerskip_executed"] for entry in trainer.state.log_history if "layerskip_executed" in entry]
    first, *_, last = (abs(share - target) for share in logged)
    assert abs(start - target) > first > 0.1 > last  # of 360 draws 0.1 are four standard deviations


@pytest.mark.parametrize("settings", [{"estimator": "reinforce"}, {"routing": "topk"}])
def test_resumed_run_equals_the_straight_one(tmp_path, settings):
    """With every average that the gates keep."""
    straight = half_open(tmp_path, settings, saved=[4], gradient_accumulation_steps=2)
    straight.train()
    resumed = half_open(tmp_path, settings, gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    tiny.assert_same_weights(straight.model, resumed.model)
    assert straight.model.bert.gates.steps.item() == 7
    assert straight.clock.flops == resumed.clock.flops
    assert (straight.model.bert.gates.baseline.item() > 0) == ("estimator" in settings)


@pytest.mark.parametrize(
    ("rows", "accumulation", "settings"), [(4, 2, {}), (4, 2, {"beta": 0.1}), (1, 8, {"estimator": "reinforce"})]
)
def test_micro_batches_do_not_matter(tmp_path, rows, accumulation, settings):
    """Neither to what runs nor to what the penalties say, which a mean over each micro-batch by itself would."""
    runs = []
    for size, steps in ((8, 1), (rows, accumulation)):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_grad_norm": 0.05}
        trainer = half_open(tmp_path, settings, budget="4steps", optim="sgd", learning_rate=0.3, **changes)
        trainer.train()
        runs.append(trainer)
    for name, value in runs[0].model.state_dict().items():
        assert torch.allclose(value, runs[1].model.state_dict()[name], atol=5e-6), name
    assert runs[0].clock.flops == pytest.approx(runs[1].clock.flops, rel=1e-9)
    assert 0 < runs[0].model.bert.gates.executed < 1


def test_gates_are_not_decayed(tmp_path):
    trainer = tiny.trainer(tmp_path, {"layerskip": {}})
    names = trainer.get_decay_parameter_names(trainer.model)
    assert "bert.encoder.layer.1.output.dense.weight" in names
    assert not any(".gates." in name for name in names)


def test_rows_that_never_ran_leave_a_layer_without_optimizer_state(tmp_path):
    trainer = tiny.trainer(tmp_path, {"layerskip": {"after": 0.0}}, budget="2steps", weight_decay=0.5, warmup_steps=0)
    lean(trainer.model, -1e4)
    before = tiny.weights(trainer.model)
    trainer.train()
    stack = stack_of(trainer.model.bert)
    for index in range(4):
        assert all((p in trainer.optimizer.state) == (index in (0, 3)) for p in stack[index].parameters())
    assert torch.equal(before["bert.encoder.layer.1.output.dense.weight"], stack[1].output.dense.weight)


def test_reference_time_goes_by_eighths(monkeypatch):
    model, batch = halved()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch)
    model.bert.gates.forced = None
    keys, optimizers = [], set()
    for share in (0.5, 0.52, 0.6):
        model.bert.gates.share = share
        keys.append(step_operation("train", model, batch, torch.float32))
        optimizers.add(optimizer_operation(model, optimizer))
    assert keys[0] == keys[1] != keys[2]
    assert "0.625 of the rows" in keys[2]
    assert "layerskip ste_executed bernoulli" in keys[2]
    assert len(optimizers) == 1
    counts = []
    monkeypatch.setattr(reference_time_meter, "time_of", lambda block, device: block() or 1.0)
    run = type(model.bert.encoder.layer[1]).forward
    monkeypatch.setattr(
        type(model.bert.encoder.layer[1]),
        "forward",
        lambda self, hidden, *args, **kwargs: counts.append(len(hidden)) or run(self, hidden, *args, **kwargs),
    )
    time_step(model, batch, lambda: torch.autocast("cpu", enabled=False))
    assert counts == [8, 5, 5]  # 5 of 8 rows for 0.6; the last layer is computed at masked positions
    assert model.bert.gates.forced is None


def test_all_policies_are_measured(tmp_path):
    trainer = half_open(tmp_path, {"target": 0.5}, layers=5)
    trainer.evaluate()
    assert not [name for name in trainer.evaluation if name.startswith("held_out_loss_")]  # no gate has learned yet
    trainer.train()
    gates = trainer.model.bert.gates
    with torch.no_grad():  # gates whose policies differ
        gates.narrow.weight.mul_(30)
        gates.out.weight.normal_(0, 5, generator=torch.Generator().manual_seed(1))
        gates.out.bias.zero_()
        gates.rates.copy_(torch.tensor([1.0, 0.9, 0.2, 0.8, 1.0]))
    trainer.evaluate()
    found = trainer.evaluation
    assert len({found[f"held_out_loss{name}"] for name in ("", "_threshold", "_hardened")}) == 3
    assert stack_of(trainer.model.bert).router is gates
    assert gates.evaluation == "all"
    loader = trainer.get_eval_dataloader()
    assert held_out_loss(trainer.model.export(), loader).total / found["masked_tokens"] == pytest.approx(
        found["held_out_loss"], abs=1e-6
    )
    hardened = tiny.model({"layerskip": {"evaluation": "hardened"}}, num_hidden_layers=5)
    hardened.load_state_dict(trainer.model.state_dict())
    exported = hardened.export()
    assert exported.config.num_hidden_layers == 4
    assert held_out_loss(exported, loader).total / found["masked_tokens"] == pytest.approx(
        found["held_out_loss_hardened"], abs=1e-6
    )


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_with_a_generator_the_main_model_alone_is_gated(tmp_path, objective):
    trainer = half_open(tmp_path, {"target": 0.5}, objective=objective)
    generator = [int(name) for name, _ in stack_of(trainer.model.generator.electra).named_children()]
    calls = []
    for layer in list(stack_of(trainer.model.generator.electra).children())[:-1]:
        layer.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    trainer.train()
    assert calls == [4] * 8 * (len(generator) - 1)
    trainer.evaluate()
    assert "held_out_loss_threshold" in trainer.evaluation
    assert 0 < trainer.model.electra.gates.executed < 1


def test_a_run_that_hardens_exports_what_it_evaluates(tmp_path):
    trainer = half_open(tmp_path, {"evaluation": "hardened", "target": 0.2, "harden": 0.9})
    trainer.train()
    trainer.evaluate()
    assert "held_out_loss_all" in trainer.evaluation
    trainer.save_model()
    stock = BertForMaskedLM.from_pretrained(tmp_path)
    assert stock.config.num_hidden_layers == 2
    ids = torch.randint(5, tiny.VOCAB, (3, tiny.LENGTH))
    model = trainer.model.eval()
    assert torch.allclose(stock(ids).logits, model(ids).logits, atol=1e-6)
    assert ran(model, input_ids=ids) == [(0, 3), (3, 3)]
    assert model.config.layer_order is None  # the training model keeps its layers


def test_a_model_that_decides_in_evaluation_has_no_stock_export(tmp_path):
    with pytest.raises(EffptError, match=r"`threshold`, which no stock model.*`save_pretrained`"):
        tiny.trainer(tmp_path, {"layerskip": {"evaluation": "threshold"}})
    model = tiny.model({"layerskip": {"evaluation": "threshold"}})
    with pytest.raises(EffptError, match="keep it with `save_pretrained`"):
        model.export()
    lean(model, -100.0)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = torch.randint(5, tiny.VOCAB, (3, tiny.LENGTH))
    assert ran(again, input_ids=ids) == [(0, 3), (3, 3)]


def test_taking_the_gates_out_leaves_nothing_behind():
    model = gated(HALF, estimator="reinforce")
    model(**tiny.batch(8, **MLM))
    plain = copy.deepcopy(model)
    plain.methods[0].eject(plain.bert)
    assert not plain.bert._forward_pre_hooks
    assert not observers_of(plain.bert.train())
    assert observers_of(model.bert)
    assert not hasattr(plain.bert, "gates")
    assert model.bert.gates.training  # of the copy alone
    assert model.bert._forward_pre_hooks


def test_goes_along_with_stacking_and_notes(tmp_path):
    ledger = {"layerskip": {"target": 0.5}, "stacking": {"depth": 1, "at": [0.25, 0.5]}}
    ledger["tnf"] = {"k": 2, "min_count": 5, "max_count": 7}
    trainer = tiny.trainer(tmp_path, ledger, gradient_accumulation_steps=2)
    trainer.add_callback(Lean(trainer))
    trainer.train()
    gates = trainer.model.bert.gates
    assert [event["step"] for event in trainer.model.config.events] == [2, 4]
    assert gates.steps.item() == 4  # from the last growth on
    assert 0 < gates.executed < 1
    assert trainer.model.export().config.num_hidden_layers == 4
