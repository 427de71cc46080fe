"""Distillation in `compress`: the large model teaches the cut one."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.width import widths_of
from hf_effpt.methods.compress.distill import NAME, distance, real_tokens, teacher_of
from hf_effpt.training import meters, reference_time_meter
from hf_effpt.training.flops import FlopCounter
from tests import tiny

BOTH = {"depth": 2, "head_keep": 0.5, "ffn_keep": 0.5, "at": 0.5}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def cut(model=None, **settings):
    """A model before and after its first cut, without a run."""
    settings = {**BOTH, "importance": "magnitude", "distill": 0.5, **settings}
    model = model or tiny.model({"compress": settings}, **NO_DROPOUT)
    before = copy.deepcopy(model)
    model.methods[0].advance(model.backbone, RunContext(4, 0.5))
    return before, model


def padded(rows=3):
    """A batch whose rows end in padding, of different lengths."""
    ids = torch.arange(5, 5 + rows * 12).reshape(rows, 12)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, 8 + row :] = mask[row, 8 + row :] = 0
    positions = torch.tensor([[1, 3]] * rows)
    labels = torch.full_like(ids, -100).scatter(1, positions, 7)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "masked_positions": positions}


def by_hand(large, small, ids, mask, **inputs):
    """The mean over tokens, one by one, of the mean over the hidden states' squared differences."""
    with torch.no_grad():
        one, other = (of.eval().backbone(ids, **inputs).last_hidden_state for of in (large, small))
    terms = [((one - other)[row, place] ** 2).mean() for row, place in mask.nonzero().tolist()]
    return float(sum(terms) / len(terms))


def test_the_term_by_hand_narrower_and_shallower():
    large, small = cut()
    batch = padded()
    assert stack_of(small.bert).order == (0, 2)
    assert widths_of(small.bert)[0][0] == 1
    assert widths_of(teacher_of(small.bert).encoder) == [[2, 64]] * 4
    loss = small.train()(**batch).loss
    penalty = small.methods[0].penalty(small.bert)
    wanted = by_hand(large, small, batch["input_ids"], batch["attention_mask"], attention_mask=batch["attention_mask"])
    assert wanted > 1e-4
    assert penalty.item() == pytest.approx(0.5 * wanted, rel=1e-5)
    assert small.methods[0].penalty(small.bert) is None  # of one forward, once
    penalty.backward()
    learning = [name for name, p in small.named_parameters() if p.grad is not None and p.grad.any()]
    assert "bert.encoder.layer.2.output.dense.weight" in learning
    assert not any("layer.1." in name or NAME in name for name in learning)
    large.methods[0].distill = 0.0
    _, alone = cut(large)
    torch.testing.assert_close(loss, alone.train()(**batch).loss)  # the term is no part of the model's own loss


def test_documents_that_do_not_see_each_other():
    large, small = cut()
    ids = torch.arange(5, 29).reshape(2, 12)
    documents = torch.tensor([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3])
    ids[documents == 0] = 0
    labels = torch.where(ids == 6, ids, -100)
    small.train()(ids, labels=labels, document_ids=documents)
    mask = (documents[:, None, :, None] == documents[:, None, None, :]).bool()
    places = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])
    wanted = by_hand(large, small, ids, documents > 0, attention_mask=mask, position_ids=places)
    term = small.train().methods[0].penalty(small.bert)
    assert term is not None
    assert term.item() == pytest.approx(0.5 * wanted, rel=1e-5)


def test_what_counts_as_a_token():
    hidden, ids = torch.zeros(1, 4, 2), torch.tensor([[5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 0, 0]])
    assert real_tokens(hidden, mask, input_ids=ids, pad=0).tolist() == [[True, True, False, False]]
    assert real_tokens(hidden, mask[:, None, None, :], input_ids=ids, pad=0).tolist() == [[True, True, True, False]]
    assert real_tokens(hidden, input_ids=ids).all()
    assert real_tokens(hidden, pad=0).all()
    assert distance(hidden + 3, hidden, real_tokens(hidden, mask, input_ids=ids, pad=0) & False).item() == 0.0


def test_a_teacher_of_what_is_not_cut_has_nothing_to_say():
    """Of one layer in two rounds, the first takes none."""
    _, model = cut(tiny.model({"compress": {"depth": 3, "at": 0.5, "rounds": 2, "distill": 1.0}}, **NO_DROPOUT))
    assert stack_of(model.bert).order == (0, 1, 2, 3)
    model.train()(**padded())
    assert model.methods[0].penalty(model.bert).item() == 0.0
    first = teacher_of(model.bert)
    assert not model.methods[0].advance(model.bert, RunContext(6, 0.8))
    assert len(stack_of(model.bert).order) == 3
    assert teacher_of(model.bert) is first
    model(**padded())
    assert model.methods[0].penalty(model.bert).item() > 1e-4


def test_the_teacher_has_the_gates_folded_in_and_runs_as_in_evaluation():
    settings = {**BOTH, "importance": "gates", "distill": 1.0}
    model = tiny.model({"compress": settings})  # with dropout
    model.methods[0].schedule(model.bert, RunContext(3, 0.45, seed=7))
    with torch.no_grad():
        for gate in model.bert.width_gates.parameters():
            gate.mul_(torch.linspace(0.5, 1.5, len(gate)))
    large, small = cut(model)
    assert small.train().training
    ids = padded()["input_ids"]
    with torch.no_grad():
        taught = [teacher_of(small.bert).encoder(ids).last_hidden_state for _ in range(2)]
        gated = large.eval().bert(ids).last_hidden_state
    assert torch.equal(*taught)
    assert torch.allclose(taught[0], gated, atol=1e-6)


def test_a_table_that_adds_to_another_teaches_what_it_says():
    ledger = {"compress": {"depth": 2, "at": 0.5, "distill": 1.0}}
    model = tiny.joint("electra", ledger, embedding_sharing="disentangled")
    with torch.no_grad():
        model.electra.embeddings.word_embeddings.weight.normal_(std=0.1)
    large, small = cut(model)
    ids = padded()["input_ids"]
    with torch.no_grad():
        taught = teacher_of(small.electra).encoder(ids).last_hidden_state
        assert torch.allclose(taught, large.eval().electra(ids).last_hidden_state, atol=1e-6)
        assert torch.allclose(taught, large.export().electra(ids).last_hidden_state, atol=1e-6)


def test_a_model_that_was_narrower_before_the_cut_teaches_as_such():
    widths = [[1, 32], [2, 64], [2, 48], [0, 16]]
    model = tiny.model(
        {"compress": {"depth": 2, "at": 0.5, "distill": 1.0}}, **NO_DROPOUT, layer_widths=widths, layer_order=[0, 2, 3]
    )
    large, small = cut(model)
    assert widths_of(teacher_of(small.bert).encoder) == [widths[index] for index in (0, 2, 3)]
    ids = padded()["input_ids"]
    with torch.no_grad():
        taught = teacher_of(small.bert).encoder(ids).last_hidden_state
        assert torch.allclose(taught, large.eval().bert(ids).last_hidden_state, atol=1e-6)
    again = type(small)(small.config)
    assert widths_of(teacher_of(again.bert).encoder) == widths_of(teacher_of(small.bert).encoder)


def test_the_teachers_forward_is_counted():
    _, taught = cut()
    plain = copy.deepcopy(taught)
    plain.methods[0].prepare(plain.bert, RunContext(0, 0.0))
    assert teacher_of(plain.bert) is None
    assert stack_of(plain.bert).read_whole  # so that the two differ by the teacher alone
    batch = {name: tensor for name, tensor in padded().items() if name != "attention_mask"}
    encoder = copy.deepcopy(teacher_of(taught.bert).encoder)
    encoder.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        encoder(batch["input_ids"])
    tokens, per_layer = 3 * 12, 8 * 32 * 32 + 4 * 32 * 64 + 4 * 12 * 32
    assert forward.get_total_flops() == 4 * tokens * per_layer
    counter = FlopCounter()
    with_teacher, without = (counter.count(model.train(), batch) for model in (taught, plain))
    assert with_teacher - without == forward.get_total_flops()
    widths = [[2, 64]] * 4
    assert taught.methods[0].cost_signature(taught.bert) == f"compress distilled by {widths}"
    assert plain.methods[0].cost_signature(plain.bert) == ""
    assert taught.methods[0].penalty(taught.bert) is None  # the count ran on a copy


def test_without_weight_there_is_no_teacher():
    _, model = cut(distill=0.0)
    assert teacher_of(model.bert) is None
    assert not stack_of(model.bert).read_whole
    assert not model.bert._forward_hooks
    assert NAME not in model.config.events[0]
    assert not any(NAME in name for name in model.state_dict())
    model.train()(**padded())
    assert model.methods[0].penalty(model.bert) is None


def run(tmp_path, distill, **changes):
    trainer = tiny.trainer(tmp_path, {"compress": {**BOTH, "distill": distill}}, **changes)
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.usefixtures("counted")
def test_a_run_is_the_same_up_to_the_cut_and_has_the_term_from_then_on(tmp_path):
    free = run(tmp_path, 0.0, dropout=0.1)
    drawn = torch.get_rng_state()
    taught = run(tmp_path, 2.0, dropout=0.1)
    assert torch.equal(drawn, torch.get_rng_state())  # a teacher draws nothing
    assert losses(free)[:4] == losses(taught)[:4]
    assert all(more > less for less, more in zip(losses(free)[4:], losses(taught)[4:], strict=True))
    assert taught.clock.tokens == free.clock.tokens
    assert taught.clock.flops > free.clock.flops
    assert free.model.config.layer_widths == taught.model.config.layer_widths
    assert len(free.optimizer.param_groups) == len(taught.optimizer.param_groups)
    present = {parameter for group in taught.optimizer.param_groups for parameter in group["params"]}
    assert present == set(taught.model.parameters())


def test_the_cut_model_comes_closer_to_its_teacher(tmp_path):
    """With the term alone to speak of, it falls."""
    ledger = {"compress": {"depth": 2, "at": 0.1, "distill": 1e4}}
    trainer = tiny.trainer(tmp_path, ledger, budget="30steps", learning_rate=1e-3, warmup_steps=0)
    trainer.train()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[3]


@pytest.mark.parametrize(
    ("objective", "importance", "places"), [("electra", "michel", (3, 5)), ("mcbert", "gates", (5,))]
)
def test_resumed_run_equals_the_straight_one(tmp_path, objective, importance, places):
    """Before and after the cut. Masked language models are resumed by tests of contract."""
    ledger = {"compress": {**BOTH, "importance": importance, "distill": 1.0}}
    straight = tiny.trainer(tmp_path, ledger, objective=objective, dropout=0.1, saved=places)
    straight.train()
    for at in places:
        resumed = tiny.trainer(tmp_path / "resumed", ledger, objective=objective, dropout=0.1)
        torch.rand(3)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        assert losses(resumed) == losses(straight)
        assert resumed.clock.flops == straight.clock.flops
        tiny.assert_same_weights(straight.model, resumed.model)


def test_a_teacher_is_in_the_checkpoints_of_its_run_only(tmp_path):
    trainer = run(tmp_path, 1.0, saved=[3, 5, 7, 8])
    made = type(trainer.model)
    models = {step: made.from_pretrained(tmp_path / f"checkpoint-{step}") for step in (3, 5, 7, 8)}
    assert [teacher_of(model.bert) is not None for model in models.values()] == [False, True, True, False]
    five, seven = (teacher_of(models[step].bert).state_dict() for step in (5, 7))
    assert all(torch.equal(five[name], seven[name]) for name in five)
    constants = dict(teacher_of(models[5].bert).named_buffers())
    assert constants["encoder.embeddings.position_ids"].tolist() == [list(range(32))]
    assert not constants["encoder.embeddings.token_type_ids"].any()
    assert NAME not in trainer.model.config.events[0]
    args = tiny.arguments(tmp_path / "new")
    other = type(trainer)(models[5], args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
    assert teacher_of(other.model.bert) is None
    assert NAME not in other.model.config.events[0]
    other.train()
    assert other.state.global_step == 8


@pytest.mark.parametrize("objective", ["mlm", "electra", "mcbert"])
def test_no_export_has_a_teacher(tmp_path, objective):
    trainer = tiny.trainer(tmp_path, {"compress": {**BOTH, "distill": 1.0}}, objective=objective)
    trainer.add_callback(tiny.StopAfter(6))
    trainer.train()
    model = trainer.model.train()
    model(**tiny.batch())  # a forward whose term nobody has taken
    plain = copy.deepcopy(model)
    plain.methods[0].prepare(plain.backbone, RunContext(0, 0.0))
    ours, theirs = model.export(), plain.export()
    assert teacher_of(model.backbone) is not None
    assert not any(NAME in name for name in ours.state_dict())
    assert NAME not in str(ours.config)
    assert not ours.base_model._forward_hooks
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_of_a_model_with_a_generator_the_term_has_the_weight_of_its_loss():
    model = tiny.joint("electra", {"compress": {"depth": 2, "at": 0.5, "distill": 0.5}})
    large, small = cut(model)
    seen = []
    small.electra.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = small.train()(**tiny.batch())
    term = small.methods[0].penalty(small.electra).item()
    assert torch.equal(seen[0], output.corrupted_ids)
    ids = output.corrupted_ids
    assert term == pytest.approx(50 * 0.5 * by_hand(large, small, ids, torch.ones_like(ids)), rel=1e-4)


def test_reference_time_and_mixed_precision_have_the_teacher_in_them(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_time_meter, "time_of", lambda block, device: block() or 0.25)
    monkeypatch.setattr(meters, "peak_flops", lambda *_: 1e9)  # which many processors take a minute for
    table = str(tmp_path / "times.json")
    settings = {"compress": {**BOTH, "importance": "magnitude", "distill": 1.0}}
    trainer = tiny.trainer(tmp_path, settings, budget="4s_rst", reference_times=table, bf16=True)
    trainer.train()
    charged = [name for name in trainer.cost.reference_time.charged if name.startswith("train|")]
    assert sorted("distilled" in name for name in charged) == [False, True]
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


def test_teacher_and_student_are_of_one_precision():
    _, model = cut()
    seen, encoder = [], teacher_of(model.bert).encoder
    for part in (encoder.encoder.layer[0], model.bert.encoder.layer[0]):
        part.intermediate.dense.register_forward_hook(lambda *parts: seen.append(parts[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(**padded())
    assert seen == [torch.bfloat16] * 2
    assert model.methods[0].penalty(model.bert).dtype == torch.float32


def test_with_notes_and_skipping(tmp_path):
    for name, settings in (("tnf", {"k": 2, "min_count": 5, "max_count": 7}), ("layerskip", {"target": 0.5})):
        ledger = {"compress": {**BOTH, "depth": 3, "distill": 1.0}, name: settings}
        trainer = tiny.trainer(tmp_path / name, ledger)
        trainer.train()
        assert teacher_of(trainer.model.bert) is None
        assert stack_of(trainer.model.bert).read_whole
        assert losses(trainer)[4] > losses(trainer)[3]  # the term is there from the cut on
