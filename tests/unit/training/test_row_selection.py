"""The seam through which methods pick rows: the stream, what is counted, who pays, and what is refused."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.row_method import RowMethod
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.methods.selection import Selection
from hf_effpt.methods.tnf import DataCollatorForNotes
from hf_effpt.models.bert import EffptBertForSequenceClassification
from hf_effpt.training import reference_time_meter
from hf_effpt.training.stream import KEYS, BatchStream
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny
from tests.picking import Watched, run, selection, trained


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("holdout"))


def entries(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# The stream.


@pytest.mark.parametrize(("keep", "size", "seen"), [(0.5, 4, 8), (0.7, 4, 6), (0.6, 3, 5), (0.3, 4, 13)])
def test_rows_are_looked_at_in_the_order_of_the_stream_and_none_is_lost(tmp_path, keep, size, seen):
    trainer = run(tmp_path, selection("random", keep=keep), per_device_train_batch_size=size, budget="9steps")
    assert [len(rows) for rows in trainer.looked] == [seen] * 9
    stream = BatchStream(48, size, seed=7).keys(np.arange(9 * seen))
    assert [key for rows in trainer.looked for key in rows] == [tuple(key) for key in stream.tolist()]
    assert trainer.stream.rows_seen == 9 * seen
    assert trainer.state.epoch == 9 * seen / 48


def test_a_window_may_cross_the_end_of_a_pass(tmp_path):
    trainer = run(tmp_path, selection("random", keep=0.4), gradient_accumulation_steps=2, budget="12steps")
    passes = [{epoch for epoch, _ in rows} for rows in trainer.looked]
    assert {0, 1} in passes
    rows = [key for rows in trainer.looked for key in rows]
    for epoch in range(4):
        assert sorted(row for of, row in rows if of == epoch) == list(range(48))


def test_selection_changes_neither_steps_nor_learning_rates(tmp_path):
    plain = run(tmp_path / "a", None, EffptTrainer, budget="20steps")
    picked = run(tmp_path / "b", selection("random", keep=0.3), budget="20steps")
    assert picked.state.global_step == plain.state.global_step == 20
    assert entries(picked, "learning_rate") == entries(plain, "learning_rate")


def test_rows_are_picked_on_the_way_to_the_model_and_shapes_stay(tmp_path):
    shapes = set()

    class Noting(Watched):
        def training_step(self, model, inputs, num_items_in_batch=None):
            shapes.add(tuple(sorted((name, tuple(values.shape)) for name, values in inputs.items())))
            assert num_items_in_batch == 2 * 4 * 2
            return super().training_step(model, inputs, num_items_in_batch)

    run(tmp_path, selection("random", keep=0.3), Noting, gradient_accumulation_steps=2)
    (shape,) = shapes
    assert shape == (("input_ids", (4, 16)), ("labels", (4, 16)), ("masked_positions", (4, 2)))


def test_a_plain_run_does_not_know_of_examples(tmp_path):
    class Noting(EffptTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            assert set(inputs) == {"input_ids", "labels", "masked_positions"}
            return super().training_step(model, inputs, num_items_in_batch)

    trainer = run(tmp_path, {"layerdrop": {"p": 0.5}}, Noting)
    assert not trainer.row_methods
    assert not trainer.masking.keyed
    assert "rows" in trainer.state.stateful_callbacks["ClockCallback"]["attributes"]
    assert trainer.stream.rows_seen == 8 * 4


def test_what_is_carried_over_is_no_longer_there_in_a_new_run(tmp_path):
    trainer = tiny.trainer(tmp_path, selection("random", keep=0.7), cls=Watched, layers=2)
    trainer.train()
    first, trainer.looked = trainer.looked, []
    trainer.train()
    assert trainer.looked == first


def test_held_out_rows_are_as_in_a_plain_run(tmp_path):
    plain = run(tmp_path / "a", None, EffptTrainer, budget="1steps", learning_rate=1e-30)
    picked = run(tmp_path / "b", selection("core_set"), budget="1steps", learning_rate=1e-30)
    assert picked.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


# Spec 9: what is counted, and who pays.


def eager_flops(trainer, rows, work):
    """What the counter counts of real work on so many rows."""
    model = trainer.model
    model.set_attn_implementation("eager")
    batch = tiny.batch(rows, objective="mlm")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work(model.eval(), batch)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("settings", "work"),
    [
        ({"strategy": "least_confidence"}, lambda m, b: (r := m.head_inputs(b)).head(r.hidden_BMD)),
        ({"strategy": "least_confidence", "scorer": "first_layer"},
         lambda m, b: (r := m.head_inputs(b, layers=1)).head(r.hidden_BMD)),
        ({"strategy": "selective_backprop"}, lambda m, b: m(**b)),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("counted")
def test_spec_9_judging_is_charged_what_it_costs(tmp_path, settings, work):
    trainer = run(tmp_path, selection(**settings), gradient_accumulation_steps=2)
    assert trainer.model.bert.selector.counts.tolist() == [16 * 8, 16 * 8, 8 * 8]
    assert trainer.clock.tokens == 8 * 16 * tiny.LENGTH
    assert trainer.cost.method_flops["selection"] == pytest.approx(8 * eager_flops(trainer, 16, work), rel=0.01)


def test_spec_9_a_row_that_is_not_picked_costs_no_training(tmp_path):
    """To multiply its loss by zero would save nothing."""
    plain = run(tmp_path / "a", None, EffptTrainer)
    picked = run(tmp_path / "b", selection("random", keep=0.25))
    assert picked.clock.flops == plain.clock.flops
    assert picked.clock.tokens == 4 * plain.clock.tokens


@pytest.mark.usefixtures("counted")
def test_spec_9_what_a_strategy_computes_itself_is_charged_too(tmp_path):
    """Distances from the queue and from one another, by products of matrices."""
    trainer = run(tmp_path, selection("core_set", queue=32))
    assert trainer.cost.method_flops["selection"] == 8 * 2 * 8 * 32 * 32  # rows, size of a vector, places of the queue


@pytest.mark.parametrize("strategy", ["least_confidence", "perceptron_ensemble", "discriminative"])
def test_spec_9_the_clock_pays_only_if_it_is_to(tmp_path, monkeypatch, strategy):
    now, select = [0.0], Selection.select

    def moment():
        now[0] += 1e-6
        return now[0]

    def slow(*given):  # a second a step, in a time in which nothing else takes any
        now[0] += 1.0
        return select(*given)

    monkeypatch.setattr(time, "perf_counter", moment)
    monkeypatch.setattr(Selection, "select", slow)
    paid, free = (
        run(tmp_path / str(charged), selection(strategy), charge_methods=charged) for charged in (True, False)
    )
    assert paid.kept == free.kept
    assert paid.cost.method_flops == free.cost.method_flops
    assert paid.clock.flops - free.clock.flops == paid.cost.method_flops["selection"] > 0
    assert (paid.clock.seconds, free.clock.seconds) == pytest.approx((8.0, 0.0), abs=0.01)
    assert paid.cost.method_seconds["selection"] == pytest.approx(8.0, abs=0.01)
    assert free.cost.method_seconds["selection"] == pytest.approx(8.0, abs=0.01)
    assert paid.clock.tokens == free.clock.tokens


def test_a_budget_of_flops_is_spent_on_judging(tmp_path):
    plain = run(tmp_path / "a", None, EffptTrainer, budget="5e7flops")
    picked = run(tmp_path / "b", selection("least_confidence"), budget="5e7flops")
    free = run(tmp_path / "c", selection("least_confidence"), budget="5e7flops", charge_methods=False)
    assert plain.state.global_step == free.state.global_step > picked.state.global_step > 0


@pytest.mark.parametrize("charged", [True, False])
def test_spec_9_reference_time_pays_for_judging(tmp_path, monkeypatch, charged):
    monkeypatch.setattr(reference_time_meter, "time_of", lambda block, device: (block(), 8.0)[1])
    trainer = run(
        tmp_path, selection("least_confidence"), budget="100s_rst", gradient_accumulation_steps=2, logging_steps=1,
        charge_methods=charged,
    )  # fmt: skip
    each = np.diff([0.0, *dict.fromkeys(entries(trainer, "reference_seconds"))])
    training, judging = 3 * 8.0, 4 * 8.0  # two micro-batches and the optimizer; four parts
    expected = training + judging if charged else training
    assert each == pytest.approx([expected] * len(each), abs=0.0 if not charged else 2.0)
    assert (each >= expected).all()
    operations = json.loads(trainer.cost.reference_time.times.path.read_text())["seconds"]
    assert any(name.startswith("score LeastConfidence") for name in operations) == charged


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("mlm", {"strategy": "expected_gradient_length"}),
        ("mlm", {"strategy": "deep_bayesian", "passes": 3}),
        ("mlm", {"strategy": "deep_bayesian", "level": "full", "passes": 2}),
        ("mlm", {"strategy": "least_confidence", "scorer": "first_layer"}),
        ("electra", {"strategy": "expected_gradient_length"}),
        ("electra", {"strategy": "least_confidence", "scorer": "generator"}),
        ("mcbert", {"strategy": "least_confidence", "scorer": "generator"}),
    ],
)
@pytest.mark.usefixtures("counted")
def test_at_fewer_positions_judging_costs_less(tmp_path, objective, settings):
    spent = []
    for number in (None, 1):
        ledger = selection(**settings, num_score_positions=number)
        trainer = run(tmp_path / str(number), ledger, objective=objective, budget="2steps")
        spent.append(trainer.cost.method_flops["selection"])
    assert 0 < spent[1] < spent[0]


@pytest.mark.usefixtures("counted")
def test_an_account_is_given_of_what_it_cost(tmp_path):
    trainer = run(tmp_path, selection("least_confidence"), gradient_accumulation_steps=2)
    trainer.save_model()
    record = json.loads((tmp_path / "run.json").read_text())
    account = record["accounts"]["selection"]
    assert [account[name] for name in ("keep", "seen", "scored", "trained")] == [0.5, 128, 128, 64]
    rest = record["clock"]["flops"] - record["method_flops"]["selection"]
    assert account["s_flops"] == pytest.approx(record["method_flops"]["selection"] / 128 / (rest / 64))
    assert 0.3 < account["s_flops"] < 0.36
    assert account["break_even_flops"] == pytest.approx(1 + 2 * account["s_flops"])
    assert "Selection learned from 64 of 128 rows" in account["text"]
    plain = run(tmp_path / "all", selection("least_confidence", keep=1.0))
    plain.save_model()
    assert json.loads((tmp_path / "all" / "run.json").read_text())["accounts"] == {}


# What is refused when a trainer is made.


@pytest.mark.parametrize("settings", [{}, {"interrupt": 2}, {"warmup": 3}, {"start": 0.6, "end": 0.9}])
def test_a_window_larger_than_the_data_is_refused(tmp_path, settings):
    with pytest.raises(EffptError, match=r"looks at 80 rows in a step, and the training data are 48"):
        tiny.trainer(tmp_path, selection("random", keep=0.05, **settings))


def test_a_share_that_leaves_no_choice_is_refused(tmp_path):
    with pytest.raises(EffptError, match=r"`selection.keep` 0.99 of a step of 4 rows asks for 4"):
        tiny.trainer(tmp_path, selection("random", keep=0.99))


@pytest.mark.parametrize("keep", [0, 1.2])
def test_a_share_out_of_range_is_refused(tmp_path, keep):
    with pytest.raises(EffptError, match=r"`selection.keep` must be in \(0, 1\]"):
        tiny.trainer(tmp_path, selection("random", keep=keep))


def test_a_model_that_is_fine_tuned_is_refused(tmp_path):
    with pytest.raises(EffptError, match=r"fine-tune"):
        EffptTrainer(
            model=EffptBertForSequenceClassification(tiny.config(selection("random"))),
            args=tiny.arguments(tmp_path),
            train_dataset=tiny.rows(),
            processing_class=tiny.tokenizer(),
        )


def test_rows_that_are_not_masked_by_us_are_refused(tmp_path):
    with pytest.raises(EffptError, match=r"needs a `DataCollatorForMaskedLM`.*not `function`"):
        EffptTrainer(
            model=tiny.model(selection("random")),
            args=tiny.arguments(tmp_path),
            train_dataset=tiny.rows(),
            processing_class=tiny.tokenizer(),
            data_collator=lambda examples: examples,
        )


def test_masks_cannot_be_chosen_behind_the_back_of_a_collator_for_notes(tmp_path):
    ledger = {"tnf": {"k": 2, "min_count": 5, "max_count": 7}} | selection("adaptive_masking")
    parts = {"args": tiny.arguments(tmp_path), "train_dataset": tiny.rows(), "processing_class": tiny.tokenizer()}
    without = EffptTrainer(model=tiny.model(ledger), **parts)  # whose model looks notes up itself
    without.train()
    collator = DataCollatorForNotes(DataCollatorForMaskedLM(tiny.tokenizer()), without.model.bert.notes)
    with pytest.raises(EffptError, match=r"which `DataCollatorForNotes` would not know of"):
        EffptTrainer(model=tiny.model(ledger), data_collator=collator, **parts)


@pytest.mark.parametrize("strategy", ["infobatch", "rho"])
def test_a_table_of_something_else_is_refused(tmp_path, holdout, strategy):
    table = tmp_path / "table"
    given = {"table": str(table)} | ({"holdout": str(holdout)} if strategy == "rho" else {})
    table.write_text("x")
    with pytest.raises(EffptError, match=r"no table of losses"):
        tiny.trainer(tmp_path / "run", selection(strategy, **given))


def test_a_table_of_another_model_or_of_other_rows_is_refused(tmp_path, holdout):
    ledger = selection("rho", holdout=str(holdout), table=str(tmp_path / "table"))
    run(tmp_path / "a", ledger, budget="2steps").save_model()
    other = trained(tmp_path / "other", budget="2steps")
    with pytest.raises(EffptError, match="losses of another model or dataset"):
        tiny.trainer(tmp_path / "b", selection("rho", holdout=str(other), table=str(tmp_path / "table")))
    run(tmp_path / "stale", selection("infobatch"), budget="2steps").save_model()
    with pytest.raises(EffptError, match="is of other rows"):
        EffptTrainer(
            model=tiny.model(selection("infobatch", table=str(tmp_path / "stale" / "selection_losses.npz"))),
            args=tiny.arguments(tmp_path / "c"),
            train_dataset=tiny.rows(48, seed=5),
            processing_class=tiny.tokenizer(),
        )


def test_settings_may_not_change_when_a_run_is_resumed(tmp_path):
    run(tmp_path, selection("random"), save_strategy="steps", save_steps=4)
    with pytest.raises(EffptError, match="resume with the methods"):
        tiny.trainer(tmp_path, selection("random", keep=0.4), layers=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )


# Two methods that pick.


def test_of_two_methods_the_second_picks_of_what_the_first_has_left(tmp_path):
    trainer = tiny.trainer(tmp_path, selection("random"), layers=2)
    seen = []

    class Half(RowMethod):
        name, summary = "half", "Takes every other row."

        def candidates(self, number, step, fraction):
            return 2 * number

        def select(self, model, rows, context):
            seen.append((len(rows["input_ids"]), context.number))
            return {name: values[::2] for name, values in rows.items()}

    trainer.model.methods = [Half(), *trainer.methods]
    trainer.train()
    assert seen == [(16, 8)] * 8
    assert trainer.stream.rows_seen == 16 * 8
    run = RunContext(8, 1.0)
    args = (trainer.model, trainer.row_methods, run, iter([stub_batch(16)]), 1, torch.device("cpu"))
    assert all(name not in KEYS for name in trainer.selection.select(*args)[0])


def stub_batch(number):
    batch = tiny.batch(number, objective="mlm")
    return batch | {"example_id": torch.arange(number), "epoch": torch.zeros(number, dtype=torch.long)}


def test_a_method_that_picks_nothing_looks_at_no_more(tmp_path):
    method = RowMethod.__new__(RowMethod)
    assert method.candidates(8, 0, 0.5) == method.candidates(8, None, 0.0) == 8
    assert method.select(SimpleNamespace(), {"a": 1}, None) == {"a": 1}
    assert Selection(strategy="reweighting").candidates(8, None, 0.0) == 8
