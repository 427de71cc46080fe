import json
from contextlib import contextmanager, nullcontext

import pytest
import torch
from transformers import BertModel

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.width import resize
from hf_effpt.training import reference_time_meter
from hf_effpt.training.reference_time_meter import (
    ReferenceMeter,
    optimizer_operation,
    step_operation,
    time_optimizer,
    time_step,
)
from hf_effpt.training.reference_time_table import ReferenceTimes
from tests import tiny

NO_TRAIN_NO_GAIN = {"forward": 0.09285, "full step": 0.2253}  # seconds on an RTX 3090, 128 rows, 16 layers


def table(path, seconds, system="here"):
    path.write_text(json.dumps({"system": system, "seconds": seconds}))
    return ReferenceTimes(path, "here")


def never():
    raise AssertionError("measured again")


def batch(rows=2):
    ids = torch.randint(5, tiny.VOCAB, (rows, 8))
    positions = torch.arange(3).expand(rows, -1)
    labels = torch.full_like(ids, -100).scatter(1, positions, 7)
    return {"input_ids": ids, "labels": labels, "masked_positions": positions}


def test_total_of_no_train_no_gain(tmp_path):
    times = table(tmp_path / "rtx3090.json", NO_TRAIN_NO_GAIN)
    assert times.total({"full step": 10, "forward": 20}) == pytest.approx(4.110, abs=1e-9)
    with pytest.raises(EffptError, match="no time for backward"):
        times.total({"backward": 1})


def test_an_operation_is_measured_once_and_kept(tmp_path):
    path = tmp_path / "cache" / "times.json"
    times = ReferenceTimes(path, "here")
    assert times.seconds("train", lambda: 0.5) == 0.5
    assert times.seconds("train", never) == 0.5
    assert ReferenceTimes(path, "here").seconds("train", never) == 0.5


def test_of_two_processes_the_first_measurement_holds(tmp_path):
    first, second = (ReferenceTimes(tmp_path / "times.json", "here") for _ in range(2))
    assert first.seconds("train", lambda: 0.5) == 0.5
    assert second.seconds("train", lambda: 0.7) == 0.5
    assert second.seconds("forward", lambda: 0.1) == 0.1
    assert json.loads((tmp_path / "times.json").read_text())["seconds"] == {"forward": 0.1, "train": 0.5}


def test_another_machine_uses_a_table_but_cannot_add_to_it(tmp_path):
    times = table(tmp_path / "times.json", {"train": 0.5}, system="an RTX 3090")
    assert times.seconds("train", never) == 0.5
    with pytest.raises(EffptError, match=r"an RTX 3090.*without `forward`"):
        times.seconds("forward", never)


@pytest.mark.parametrize("content", ["", "[]", '{"system": "x"}', '{"system": "x", "seconds": {"a": "b"}}'])
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "times.json").write_text(content)
    with pytest.raises(EffptError, match="no table of reference times"):
        ReferenceTimes(tmp_path / "times.json", "here")


def test_a_slip_in_the_table_is_found(tmp_path):
    """The published table has .01052 between .09188 and .1186: more layers cannot take a tenth of the time."""
    seconds = {f"train|ids|layers {n}x100|head": t for n, t in ((6, 0.09188), (7, 0.01052), (8, 0.1186))}
    (fault,) = table(tmp_path / "times.json", seconds).faults()
    assert "7x100" in fault
    assert "less than" in fault
    assert not table(tmp_path / "good.json", seconds | {"train|ids|layers 7x100|head": 0.1052}).faults()


def test_a_disturbed_measurement_is_said(tmp_path, caplog):
    times = table(tmp_path / "times.json", {"train|ids|layers 6x100|head": 0.09})
    times.seconds("train|ids|layers 7x100|head", lambda: 0.01)
    assert "less than" in caplog.text
    meter = ReferenceMeter(times, torch.float32, nullcontext, nullcontext)
    assert meter.record() == {"system": "here", "faults": []}  # nothing of this run
    meter.charged.add("train|ids|layers 7x100|head")
    assert len(meter.record()["faults"]) == 1


def test_total_of_no_train_no_gain_as_a_run_is_charged(tmp_path):
    """The same sum through the meter: ten full steps and twenty forward passes, and what is charged as measured."""
    meter = ReferenceMeter(table(tmp_path / "t.json", NO_TRAIN_NO_GAIN), torch.float32, nullcontext, nullcontext)
    for operation in ["full step"] * 10 + ["forward"] * 20:
        meter._add(operation, never)
    assert meter.take() == pytest.approx(4.110, abs=1e-9)
    assert meter.take() == 0.0
    meter.add_seconds(0.5)
    assert meter.take() == 0.5


def test_measuring_is_not_charged_to_the_run(tmp_path):
    within = []

    @contextmanager
    def paused():
        within.append(True)
        yield
        within.pop()

    meter = ReferenceMeter(ReferenceTimes(tmp_path / "t.json", "here"), torch.float32, nullcontext, paused)
    meter._add("train", lambda: 0.25 if within else pytest.fail("on the clock"))
    assert meter.take() == 0.25


def test_the_time_of_an_operation_is_the_lower_quartile_of_single_calls(monkeypatch):
    clock, calls = [0.0], []

    def block():
        calls.append(1)
        clock[0] += 3.0 if len(calls) % 2 else 1.0  # every other call is disturbed

    monkeypatch.setattr(reference_time_meter.time, "perf_counter", lambda: clock[0])
    assert reference_time_meter.time_of(block, torch.device("cpu")) == 1.0


def test_a_resumed_run_must_have_counted_what_its_budget_is_about(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_time_meter, "time_of", lambda block, device: 0.5)
    tiny.trainer(tmp_path, budget="6steps", save_strategy="steps", save_steps=3).train()
    with pytest.raises(EffptError, match="reference_seconds, but the run to be resumed has not counted"):
        tiny.trainer(tmp_path, budget="6s_rst").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_operations_are_told_apart_by_what_they_cost():
    model = tiny.model({"layerdrop": {"p": 0.5}}).train()
    key = step_operation("train", model, batch(), torch.float32)
    assert key == step_operation("train", model, batch(), torch.float32)
    others = {
        step_operation("forward", model, batch(), torch.float32),
        step_operation("train", model, batch(3), torch.float32),
        step_operation("train", model, batch(), torch.bfloat16),
        step_operation(
            "train", tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), batch(), torch.float32
        ),
    }
    model.methods[0].schedule(model.backbone, RunContext(3, 0.0, 0))
    others.add(step_operation("train", model, batch(), torch.float32))
    assert len(others | {key}) == 6


def shaped(*widths, order=(0, 1, 2, 3)):
    model = tiny.model()
    resize(model.bert, [list(widths[index]) for index in order])
    return model


def with_(model, change):
    change(model)
    return model


# Models of equally many parameters in each layer, or of different ones outside them.
MODELS = {
    "plain": tiny.model,
    "heads": lambda: tiny.model(num_attention_heads=4),
    "another shape": lambda: shaped((2, 64), (1, 64), (2, 16), (2, 64)),
    "another order": lambda: shaped((2, 64), (1, 64), (2, 16), (2, 64), order=(0, 2, 1, 3)),
    "checkpointing": lambda: tiny.checkpointing(tiny.model()),
    "reentrant checkpointing": lambda: tiny.checkpointing(tiny.model(), {"use_reentrant": True}),
    "bottom frozen": lambda: with_(tiny.model(), lambda m: m.bert.encoder.layer[0].requires_grad_(False)),
    "top frozen": lambda: with_(tiny.model(), lambda m: m.bert.encoder.layer[3].requires_grad_(False)),
    "embeddings frozen": lambda: with_(tiny.model(), lambda m: m.bert.embeddings.requires_grad_(False)),
    "positions": lambda: tiny.model(max_position_embeddings=64),
    "activation": lambda: tiny.model(hidden_act="gelu_new"),
    "chunks": lambda: tiny.model(chunk_size_feed_forward=2),
    "dropout of hidden states": lambda: tiny.model(attention_probs_dropout_prob=0.0),
    "dropout of attention": lambda: tiny.model(hidden_dropout_prob=0.0),
    "all hidden states": lambda: tiny.model(output_hidden_states=True),
    "attention weights": lambda: tiny.model(output_attentions=True),
    "half": lambda: tiny.model().bfloat16(),
    "smoothing": lambda: with_(tiny.model(), lambda m: setattr(m, "label_smoothing", 0.1)),
    "heads that are masked": lambda: tiny.model({"layerdrop": {"p": 0.0, "heads": 0.2}}),
    "losses by token": lambda: tiny.model({"layerskip": {"estimator": "reinforce"}}),
    "read whole": lambda: with_(tiny.model(), lambda m: setattr(m.bert.encoder.layer, "read_whole", True)),
    "generator": tiny.joint,
    "generator's heads": lambda: tiny.joint(generator={"num_attention_heads": 2}),
    "generator's dropout": lambda: tiny.joint(generator={"hidden_dropout_prob": 0.1}),
    "two tables of words": lambda: tiny.joint(embedding_sharing="disentangled"),
}


if hasattr(BertModel, "activation_checkpointing_enable"):  # in newer transformers
    MODELS["every other layer checkpointed"] = lambda: tiny.checkpointing(tiny.model(), every_n_layers=2)
    MODELS["activations on the host"] = lambda: tiny.checkpointing(tiny.model(), offload=True)


def test_models_whose_steps_differ_in_time_have_different_keys():
    keys = {}
    for name, make in MODELS.items():
        key = step_operation("train", make().train(), batch(), torch.float32)
        assert key not in keys, (name, keys[key])
        assert key == step_operation("train", make().train(), batch(), torch.float32), name
        keys[key] = name


def test_settings_of_the_process_are_part_of_the_key():
    model, keys = tiny.model().train(), set()
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            keys.add(step_operation("train", model, batch(), torch.float32))
        torch.use_deterministic_algorithms(True)
        keys.add(step_operation("train", model, batch(), torch.float32))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
    assert len(keys) == 3


def test_what_matters_in_training_alone_is_no_part_of_the_key_of_scoring():
    """It is done in evaluation mode, without gradients, with all layers of the order."""
    model, keys = tiny.model({"layerdrop": {"p": 0.5}}).train(), set()
    for change in (
        lambda: None,
        lambda: setattr(model.bert.encoder.layer, "dropped", frozenset({1})),
        lambda: tiny.checkpointing(model),
        lambda: model.bert.embeddings.requires_grad_(False),
        lambda: setattr(model.config, "hidden_dropout_prob", 0.0),
    ):
        change()
        keys.add(step_operation("score losses", model, batch(), torch.float32))
    assert len(keys) == 1


def test_labels_without_positions_are_part_of_the_key():
    model, inputs = tiny.model().train(), batch()
    del inputs["masked_positions"]
    few = step_operation("train", model, inputs, torch.float32)
    inputs["labels"][0, 3] = 9
    assert step_operation("train", model, inputs, torch.float32) != few


def test_optimizer_steps_are_told_apart_by_what_they_cost():
    model = tiny.model().train()

    def key(clip=0.0, groups=1, **settings):
        parameters = list(model.parameters())
        own = [{"params": parameters[place::groups]} for place in range(groups)]
        return optimizer_operation(model, torch.optim.AdamW(own, **settings), clip)

    keys = [key(), key(clip=0.5), key(weight_decay=0.0), key(amsgrad=True), key(foreach=True), key(groups=2)]
    assert key(lr=0.0) == key()
    assert key(clip=1.0) == key(clip=0.5)
    for parameter in model.bert.embeddings.parameters():
        parameter.grad = torch.zeros_like(parameter)
    keys.append(key())
    model.bert.encoder.layer[0].output.dense.bias.grad = torch.zeros(32)
    keys.append(key())
    assert len(set(keys)) == 8


def test_old_keys_are_not_found(tmp_path):
    """So an operation is measured again whose old key did not say what it costs."""
    old = (
        "train|input_ids 2x8, labels 2x8, masked_positions 2x3|layers 4x8544|EffptBertForMaskedLM hidden 32 "
        "vocabulary 128 sdpa dropout|float32"
    )
    times = table(tmp_path / "times.json", {old: 0.5})
    operation = step_operation("train", tiny.model().train(), batch(), torch.float32)
    assert times.seconds(operation, lambda: 0.25) == 0.25
    assert set(json.loads((tmp_path / "times.json").read_text())["seconds"]) == {old, operation}


def test_which_layers_run_does_not_matter_only_how_many():
    model = tiny.model({"layerdrop": {"p": 0.5}}).train()
    stack = model.bert.encoder.layer
    keys = set()
    for dropped in ({0}, {3}):
        stack.dropped = frozenset(dropped)
        keys.add(step_operation("train", model, batch(), torch.float32))
    assert len(keys) == 1


def test_measuring_leaves_the_run_as_it_was():
    model = tiny.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    inputs = batch()
    model(**inputs).loss.backward()
    optimizer.step()
    weights, state = tiny.weights(model), torch.get_rng_state()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    steps = [value["step"].item() for value in optimizer.state.values()]
    assert time_step(model, inputs, lambda: torch.autocast("cpu", enabled=False)) > 0
    assert time_optimizer(model, optimizer, 1.0) > 0
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert all(torch.equal(gradients[name], p.grad) for name, p in model.named_parameters() if p.grad is not None)
    assert steps == [value["step"].item() for value in optimizer.state.values()]


def test_a_layer_without_gradient_costs_the_optimizer_nothing():
    model = tiny.model({"layerdrop": {"p": 0.5}}).train()
    optimizer = torch.optim.AdamW(model.parameters())
    whole = optimizer_operation(model, optimizer)
    model.bert.encoder.layer.dropped = frozenset({1})
    assert optimizer_operation(model, optimizer) != whole


def test_a_run_is_charged_what_the_table_says(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_time_meter, "time_of", lambda block, device: block() or 0.25)
    trainer = tiny.trainer(tmp_path / "a", budget="3s_rst", gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == 4  # 0.25 s for each of two micro-batches and for the optimizer
    assert trainer.clock.reference_seconds == 3.0
    assert trainer.state.log_history[-2]["reference_seconds"] == 3.0
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_fewer_layers_are_charged_less(tmp_path, monkeypatch):
    times = iter([4.0, 1.0, 1.0, 1.0])  # the whole model first
    monkeypatch.setattr(reference_time_meter, "time_of", lambda block, device: next(times, 1.0))
    trainer = tiny.trainer(tmp_path / "a", {"layerdrop": {"p": 0.5, "after": 0.25}}, budget="20s_rst")
    trainer.train()
    assert trainer.state.global_step > 4
    assert len(json.loads(trainer.cost.reference_time.times.path.read_text())["seconds"]) > 2


def test_a_resumed_run_repeats_the_straight_one(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_time_meter, "time_of", lambda block, device: 0.5)
    settings = {"budget": "6s_rst", "save_strategy": "steps", "save_steps": 3}
    straight = tiny.trainer(tmp_path / "a", **settings)
    straight.train()
    again = tiny.trainer(tmp_path / "a", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert again.clock.reference_seconds == straight.clock.reference_seconds == 6.0
    assert all(torch.equal(p, q) for p, q in zip(straight.model.parameters(), again.model.parameters(), strict=True))
