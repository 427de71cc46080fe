"""Runs that learn next tokens first and masked ones then (Gisserot-Boukhlef et al., 2025)."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM

from hf_effpt.core.errors import EffptError
from hf_effpt.data.packing import pack
from hf_effpt.diagnosis.run_facts import run_facts
from hf_effpt.hub.card import model_card
from hf_effpt.training.flops import FlopCounter
from hf_effpt.training.phases import Phase, facts_of_phases
from hf_effpt.training.reference_time_meter import step_operation
from tests import tiny
from tests.unit.training.test_phases import LONG, SHORT, Rows, rows_of, trainer_on

TNF = {"tnf": {"k": 2, "min_count": 2, "max_count": 3}}


def two(since=0.5, rows=None, later=None, **more):
    """Next tokens, then masked ones, of the same rows unless `later` are given."""
    rows = rows_of(SHORT) if rows is None else rows
    return [Phase(0.0, rows, objective="clm"), Phase(since, later or rows, objective="mlm", **more)]


class Batches:
    """Inputs of all micro-batches in training, as they come."""

    def __init__(self, trainer):
        self.found, step = [], trainer.training_step

        def training_step(model, inputs, items=None):
            self.found.append({name: value for name, value in inputs.items() if torch.is_tensor(value)})
            return step(model, inputs, items)

        trainer.training_step = training_step


def test_masks_and_order_are_those_of_an_ordinary_run(tmp_path):
    plain, trainer = trainer_on(tmp_path / "plain", rows_of(SHORT)), trainer_on(tmp_path / "two", two())
    ordinary, batches = Batches(plain), Batches(trainer)
    plain.train()
    trainer.train()
    for place, (found, expected) in enumerate(zip(batches.found, ordinary.found, strict=True)):
        if place < 4:
            assert set(found) == {"input_ids", "labels", "causal"}
            ids = torch.where(expected["labels"] != -100, expected["labels"], expected["input_ids"])
            assert torch.equal(found["input_ids"], ids)
            assert torch.equal(found["labels"][:, :-1], ids[:, 1:])
        else:
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_a_resumed_run_is_the_straight_one_and_is_exported(tmp_path, backbone):
    """Within next tokens, at the step at which they end, and after it."""
    straight = trainer_on(tmp_path, two(), backbone, saved=(2, 4, 7), gradient_accumulation_steps=2)
    straight.train()
    for at in (2, 4, 7):
        second = trainer_on(tmp_path / "resumed", two(), backbone, gradient_accumulation_steps=2)
        second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        tiny.assert_same_weights(straight.model, second.model)
        assert second.clock.flops == straight.clock.flops
    straight.evaluate()
    straight.save_model()
    ids = torch.randint(5, tiny.VOCAB, (2, SHORT))
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(stock(ids).logits, straight.model.eval()(ids).logits, atol=1e-6)
    assert json.loads((tmp_path / "run.json").read_text())["evaluation"]["objective"] == "mlm"


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_charged_flops_are_those_of_the_real_step(tmp_path, backbone):
    trainer = trainer_on(tmp_path, two(), backbone, counter=FlopCounter())
    trainer.model.set_attn_implementation("eager")  # all of its products are counted
    batches = Batches(trainer)
    trainer.train()
    charged = {}
    for place in (0, -1):
        batch, model = batches.found[place], trainer.model.train()
        charged[place] = trainer.cost.counter.count(model, batch)
        with FlopCounterMode(display=False) as real:
            model(**batch).loss.backward()
        assert charged[place] == real.get_total_flops()
    assert charged[0] > charged[-1]  # of all positions
    assert trainer.clock.flops == pytest.approx(4 * (charged[0] + charged[-1]))
    names = {step_operation("train", trainer.model, batches.found[place], torch.float32) for place in (0, -1)}
    assert len(names) == 2  # reference time has a time for each


def test_longer_rows_larger_batches_and_other_shares_go_together_with_it(tmp_path):
    short, long = rows_of(SHORT), rows_of(LONG, seed=2)
    phases = [
        Phase(0.0, short, mlm_probability=0.5, objective="clm"),
        Phase(0.25, short, mlm_probability=0.5, objective="mlm"),
        Phase(0.5, long, mlm_probability=0.25, objective="clm"),
        Phase(0.75, long, mlm_probability=0.25, objective="mlm"),
    ]
    trainer = trainer_on(tmp_path, phases, batch_ramp={0: 2, 0.625: 4}, optim="muon")
    seen, batches = Rows(trainer), Batches(trainer)
    trainer.train()
    assert seen.shapes == [(2, SHORT)] * 4 + [(1, LONG)] + [(2, LONG)] * 3
    assert ["causal" in batch for batch in batches.found] == [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2
    labels = [(batch["labels"] != -100).sum(1)[0].item() for batch in batches.found]
    assert labels == [15] * 2 + [8] * 2 + [31] * 2 + [8] * 2


def test_micro_batches_do_not_change_a_step(tmp_path):
    found = []
    for size, steps in ((4, 1), (1, 4)):
        trainer = trainer_on(
            tmp_path / str(size), two(), per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            dropout=0.0, optim="sgd", learning_rate=0.05, budget="4steps",
        )  # fmt: skip
        trainer.train()
        found.append(tiny.weights(trainer.model))
    for name, weight in found[0].items():
        assert torch.allclose(weight, found[1][name], atol=1e-5), name


METHODS = {
    "stacking": {"stacking": {"depth": 1, "at": [0.3]}},
    "learned growth": {"stacking": {"depth": 1, "at": [0.3], "operator": "ligo_depth"}},
    "layerdrop": {"layerdrop": {"p": 0.3}},
    "earlybert": {"earlybert": {"max_search_steps": 0.3, "every": 1, "window": 2}},
    "compress": {"compress": {"head_keep": 0.5, "at": 0.4}},
    "compress later": {"compress": {"depth": 1, "at": 0.7, "distill": 1.0}},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_go_on_through_the_change(tmp_path, name):
    changes = {"methods": METHODS[name], "dropout": 0.0}
    straight = trainer_on(tmp_path, two(), saved=[3, 5], **changes)
    straight.train()
    for at in (3, 5):
        second = trainer_on(tmp_path / "resumed", two(), **changes)
        second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        tiny.assert_same_weights(straight.model, second.model)


REFUSED = [
    (lambda: two()[:1], {}, "The objective is `clm` to the end, but what is exported is a masked language model"),
    (lambda: [Phase(0.0, rows_of(SHORT), objective="next")], {}, "The `objective` 'next' of a phase must be `clm` or"),
    (two, {"backbone": "electra"}, "but a `ElectraForJointPreTraining` learns `electra`; leave it out"),
    (two, {"masks": False}, "A phase has an `objective`, but no collator of this package makes its batches"),
    (two, {"methods": TNF}, "`tnf` gives each token of a word the note of the whole word"),
    (
        two,
        {"methods": {"layerskip": {}}, "layers": 4},
        "`layerskip` decides by the mean of a row .* up to 0.5 of the clock",
    ),
    (two, {"methods": {"lottery": {"rounds": 1}}}, "`lottery` rewinds the weights"),
    (two, {"methods": {"compress": {"depth": 1, "at": 0.5, "distill": 1.0}}}, "`compress` has the model of `at` 0.5"),
    (two, {"methods": {"selection": {"strategy": "adaptive_masking"}}}, "`selection` judges rows by their masks"),
    (
        two,
        {"branches": [0.5], "lr_scheduler_type": "warmup_stable_decay"},
        "The branch at 0.5 of the budget would end as a model of next tokens",
    ),
]


@pytest.mark.parametrize(("phases", "changes", "message"), REFUSED)
def test_what_is_unsound_is_refused_at_construction(tmp_path, phases, changes, message):
    with pytest.raises(EffptError, match=message):
        trainer_on(tmp_path, phases(), **changes)


def test_a_branch_may_end_among_masked_tokens(tmp_path):
    changes = {"branches": [0.75], "lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 0.1}
    trainer = trainer_on(tmp_path, two(), **changes)
    trainer.train()
    assert trainer.branches.train(0.75)["tokens"] > 0


def test_a_checkpoint_of_other_objectives_is_refused(tmp_path):
    first = trainer_on(tmp_path, two(), save_strategy="steps", save_steps=2)
    first.add_callback(tiny.StopAfter(2))
    first.train()
    rows = rows_of(SHORT)
    later = [Phase(0.0, rows), Phase(0.5, rows, mlm_probability=0.2)]
    with pytest.raises(EffptError, match=r"has changed since .*, next tokens; from 0\.5"):
        trainer_on(tmp_path, later).train(resume_from_checkpoint=True)


def test_records_tell_of_it(tmp_path):
    """Facts of the run, its card, and the steps at which `effpt doctor` expects another loss."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(100)))
    rows = pack(tmp_path / "text.txt", tiny.tokenizer(), sequence_length=16, validation=None)["train"]
    data = facts_of_phases(two(rows=rows))
    assert data["objective"] == "clm"
    assert [(one["since"], one["objective"]) for one in data["phases"]] == [(0.5, "mlm")]
    said = str(model_card({"data": data, "model": {"objective": "mlm", "stock_class": "BertForMaskedLM"}}))
    assert "From 0 to 0.5 of the clock it learned next tokens (`clm`) instead." in said
    history = [{"step": step, "loss": 1.0, "clock": step / 8} for step in range(1, 9)]
    found = run_facts({"data": data, "history": history}, "run")
    assert (found.events, found.turned, len(found.last_losses_N)) == ((3,), 3, 5)
    assert run_facts({"history": history}, "run").events == ()
