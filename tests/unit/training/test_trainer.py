from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from datasets import Dataset, Features, Sequence, Value
from torch.utils.data import IterableDataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, TrainingArguments

from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Paper
from hf_effpt.core.registry import METHODS, register
from hf_effpt.core.row_method import RowMethod
from hf_effpt.methods.layerdrop import LayerDrop
from hf_effpt.methods.selection import Selection
from hf_effpt.models import EffptBertForSequenceClassification, EffptRobertaConfig, EffptRobertaForMaskedLM
from hf_effpt.training import meters
from hf_effpt.training.named import LayerDropTrainer, StackingTrainer
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny


def entries(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.slow
def test_learns(tmp_path):
    trainer = tiny.trainer(
        tmp_path, layers=2, budget="150steps", learning_rate=1e-2, per_device_train_batch_size=48, max_grad_norm=1.0,
        logging_steps=100,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 1
    assert after < trainer.evaluation["unigram_floor"] - 0.5


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_learning_rate_of_a_budget_in_steps_is_the_stock_one(tmp_path, schedule):
    from transformers import get_scheduler

    trainer = tiny.trainer(tmp_path, lr_scheduler_type=schedule)
    trainer.train()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    stock = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=8)
    expected = []
    for _ in range(8):
        expected.append(stock.get_last_lr()[0])
        optimizer.step()
        stock.step()
    assert entries(trainer, "learning_rate") == pytest.approx(expected, abs=0)
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_budget_in_tokens_ends_with_the_learning_rate_decayed(tmp_path):
    tokens_a_step = 4 * tiny.LENGTH
    trainer = tiny.trainer(tmp_path, budget=f"{10 * tokens_a_step}tokens")
    trainer.train()
    assert trainer.state.global_step == 10
    assert trainer.clock.fraction == 1.0
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)
    assert entries(trainer, "learning_rate")[-1] < 0.2 * 1e-3


def test_budget_in_flops_stops_after_the_step_that_spends_it(tmp_path):
    one = tiny.trainer(tmp_path, budget="1steps", warmup_steps=0)
    one.train()
    trainer = tiny.trainer(tmp_path, budget=f"{2.5 * one.clock.flops}flops")
    trainer.train()
    assert trainer.state.global_step == 3


def test_budget_in_seconds_follows_the_time_told(tmp_path, monkeypatch):
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 1, "at": [0.25, 0.5]}}, budget="10s")
    clock = iter(range(1000))
    monkeypatch.setattr("hf_effpt.training.timekeeping.Timekeeper._now", lambda self: (float(next(clock)), 0.0))
    trainer.log = lambda *_, **__: None  # which would stop the clock and so look at it
    trainer.train()
    assert trainer.clock.finished
    assert trainer.state.global_step == 10
    assert trainer.clock.seconds == 11.0  # and what was left to do when the tenth step was launched
    assert [event["step"] for event in trainer.model.config.events] == [3, 5]


def test_saving_and_evaluating_are_not_charged(tmp_path):
    trainer = tiny.trainer(tmp_path)
    clock = iter([0.0, 5.0, 105.0, 107.0])
    trainer.cost.timekeeper._now = lambda: (next(clock), 0.0)
    trainer.cost.timekeeper.start()
    with trainer.cost.timekeeper.paused():
        pass
    assert trainer.cost.timekeeper.step(tokens=1, flops=1.0) == 7.0


def test_a_pause_within_a_pause_is_skipped_once(tmp_path):
    trainer = tiny.trainer(tmp_path)
    clock = iter([0.0, 5.0, 105.0, 107.0])
    trainer.cost.timekeeper._now = lambda: (next(clock), 0.0)
    trainer.cost.timekeeper.start()
    with trainer.cost.timekeeper.paused(), trainer.cost.timekeeper.paused():
        pass
    assert trainer.cost.timekeeper.step(tokens=1, flops=1.0) == 7.0


def test_passes_over_the_data_are_a_budget_too(tmp_path):
    trainer = tiny.trainer(tmp_path, budget=None, num_train_epochs=1.5)
    trainer.train()
    assert trainer.state.global_step == 18  # 1.5 times 48 rows in steps of 4
    assert trainer.state.epoch == pytest.approx(1.5)


def test_what_is_due_once_an_epoch_is_due_after_each_pass(tmp_path):
    """48 rows in steps of 4: a pass is 12 steps."""
    trainer = tiny.trainer(
        tmp_path, budget="30steps", eval_strategy="epoch", save_strategy="epoch", save_total_limit=None
    )
    saved, save = [], trainer.saver.checkpoint
    trainer.saver.checkpoint = lambda step, *more: saved.append(step) or save(step, *more)
    trainer.train()
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == saved == [12, 24, 30]
    assert sorted(int(folder.name.split("-")[1]) for folder in tmp_path.glob("checkpoint-*")) == [12, 24, 30]


def test_logs_say_where_the_time_goes(tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    parts = [entry[f"time_{part}"] for part in ("data", "forward", "backward", "optimizer")]
    assert all(part >= 0 for part in parts)
    assert sum(parts) <= 1.0
    assert entry["tokens_per_second"] > 0
    assert 0 < entry["mfu"] < 1
    assert entry["tokens"] == 4 * tiny.LENGTH
    assert entry["flops"] == trainer.clock.flops / 8 == trainer.state.total_flos / 8


def test_held_out_masks_are_the_same_at_every_call_whatever_the_training_rate(tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.masking.mlm_probability = 0.4
    first = [batch["labels"] for batch in trainer.get_eval_dataloader()]
    trainer.train()
    second = [batch["labels"] for batch in trainer.get_eval_dataloader()]
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    assert all((labels != -100).sum() == round(0.15 * tiny.LENGTH) * len(labels) for labels in first)


def test_held_out_loss_weighs_tokens_not_batches(tmp_path):
    ragged = tiny.trainer(tmp_path, per_device_eval_batch_size=5)
    whole = tiny.trainer(tmp_path, per_device_eval_batch_size=12)
    assert ragged.evaluate()["eval_loss"] == pytest.approx(whole.evaluate()["eval_loss"], abs=1e-6)
    assert ragged.evaluation["masked_tokens"] == 12 * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_a_run(tmp_path, workers):
    plain = tiny.trainer(tmp_path, dropout=0.1)
    plain.train()
    other = tiny.trainer(tmp_path, dropout=0.1, dataloader_num_workers=workers)
    other.train()
    assert entries(plain) == entries(other)


def test_rows_with_padding_are_held_out_alike_whatever_their_column(tmp_path):
    """Padding in a column of fixed length is told by its token, as that of lists."""
    padded = [[2, *range(7 + row, 15 + row), 3, *[0] * 6] for row in range(5)]
    fixed = Features({"input_ids": Sequence(Value("int32"), length=tiny.LENGTH)})
    datasets = [Dataset.from_dict({"input_ids": padded}, features=features) for features in (fixed, None)]
    for objective in ("mlm", "electra"):
        trainer = tiny.trainer(tmp_path, objective=objective, per_device_eval_batch_size=2)
        losses = [trainer.evaluate(rows)["eval_loss"] for rows in datasets]
        assert losses[0] == losses[1]


def test_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr(meters, "peak_flops", lambda *_: 1e9)  # which many processors take long to measure
    trainer = tiny.trainer(tmp_path, {"layerdrop": {"p": 0.3}}, bf16=True)
    seen = set()
    trainer.model.cls.predictions.decoder.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {torch.bfloat16}
    assert all(torch.isfinite(torch.tensor(entries(trainer))))
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
def test_compiled_layers_train_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self: setattr(self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager")),
    )
    ledger = {"stacking": {"depth": 1, "at": [0.3, 0.6]}}
    plain, compiled = tiny.trainer(tmp_path, ledger), tiny.trainer(tmp_path, ledger, compile_layers=True)
    plain.train()
    compiled.train()
    assert entries(plain) == pytest.approx(entries(compiled), abs=1e-5)
    assert plain.clock.flops == compiled.clock.flops


def test_named_trainers_switch_their_method_on(tmp_path):
    for cls, name in ((LayerDropTrainer, "layerdrop"), (StackingTrainer, "stacking")):
        trainer = tiny.trainer(tmp_path, cls=cls)
        assert [method.name for method in trainer.methods] == [name]
        assert trainer.model.config.methods == {name: {}}
    kept = tiny.trainer(tmp_path, {"layerdrop": {"p": 0.4}}, cls=LayerDropTrainer)
    assert kept.methods[0].p == 0.4


def test_stock_collator_and_a_list_of_examples(tmp_path):
    from transformers import DataCollatorForLanguageModeling

    rows = [{"input_ids": row["input_ids"], "text": "no input of the model"} for row in tiny.rows(8)]
    trainer = EffptTrainer(
        tiny.model(),
        tiny.arguments(tmp_path),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tiny.tokenizer()),
    )
    trainer.train()
    assert len(entries(trainer)) == 8


def test_fine_tuning_masks_nothing(tmp_path):
    """A head that is no language model gets the stock collator, and labels are learned."""
    examples = [
        {"input_ids": [2, 5 + 50 * (i % 2), 7, 3], "attention_mask": [1] * 4, "labels": i % 2} for i in range(32)
    ]
    config = tiny.config({"layerdrop": {"p": 0.2}}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = EffptTrainer(
        EffptBertForSequenceClassification(config),
        tiny.arguments(tmp_path, budget="60steps", learning_rate=3e-3, gradient_accumulation_steps=2),
        train_dataset=Dataset.from_list(examples),
        eval_dataset=Dataset.from_list(examples),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.1
    assert entries(trainer)[0] == pytest.approx(0.69, abs=0.2)
    trainer.save_model()
    assert (
        type(AutoModelForSequenceClassification.from_pretrained(tmp_path)).__name__ == "BertForSequenceClassification"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_a_gpu(tmp_path, precision):
    settings = {"use_cpu": False, precision: True, "budget": "100steps", "learning_rate": 3e-3}
    settings |= {"save_strategy": "steps", "save_steps": 50}
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.3]}}, **settings)
    trainer.train()
    assert entries(trainer)[-1] < entries(trainer)[0]
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")
    resumed = tiny.trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-50"))
    assert entries(resumed)[-1] == pytest.approx(entries(trainer)[-1], abs=1e-2)


@dataclass
class Probe(RowMethod):
    """Uses every hook of the contract."""

    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "A method of the tests."
    paper: ClassVar[Paper] = Paper(title="", authors="", year=2026, bibtex="")

    def penalty(self, backbone):
        return 100.0 * backbone.embeddings.LayerNorm.weight.mean()

    def candidates(self, number, step, fraction):
        return 2 * number

    def select(self, model, rows, context):
        return {name: value[::2] for name, value in rows.items()}


@pytest.fixture
def _probe():
    register(Probe)
    yield
    METHODS.pop("probe")


@pytest.mark.usefixtures("_probe")
@pytest.mark.parametrize("accumulation", [1, 4])
def test_penalty_counts_once_a_step_and_of_more_rows_some_are_learned_from(tmp_path, accumulation):
    trainer = tiny.trainer(tmp_path, {"probe": {}}, gradient_accumulation_steps=accumulation, budget="2steps")
    shapes = []
    trainer.model.bert.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple((args[0] if args else kwargs["input_ids"]).shape)),
        with_kwargs=True,
    )
    trainer.train()
    assert set(shapes) == {(4, tiny.LENGTH)}
    assert len(shapes) == 2 * accumulation
    assert trainer.stream.rows_seen == 2 * 2 * 4 * accumulation
    assert entries(trainer)[0] == pytest.approx(100 + 4.85, abs=0.5)


@pytest.mark.usefixtures("_probe")
def test_no_penalty_in_evaluation(tmp_path):
    assert tiny.trainer(tmp_path, {"probe": {}}).evaluate()["eval_loss"] < 10


def test_refreshed_optimizer_keeps_the_state_of_what_stayed(tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.train()
    live = trainer.optimizer
    layer = trainer.model.bert.encoder.layer[1].output.dense
    gone, stayed = layer.weight, layer.bias
    layer.weight = torch.nn.Parameter(gone[:, :48].detach().clone())
    trainer.refresh_optimizer()
    assert trainer.optimizer is live
    present = {parameter for group in live.param_groups for parameter in group["params"]}
    assert present == set(trainer.model.parameters())
    assert gone not in live.state
    assert live.state[stayed]["step"] == 8


def roberta(positions):
    """A model whose table has one row for padding before those for tokens."""
    return EffptRobertaForMaskedLM(
        EffptRobertaConfig(**tiny.SHAPE | {"max_position_embeddings": positions}, pad_token_id=0)
    )


def adapted():
    peft = pytest.importorskip("peft")
    model = tiny.model()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    return model


class Endless(IterableDataset):
    def __iter__(self):
        yield {"input_ids": [2, 5, 3]}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"model": lambda: BertForMaskedLM(BertConfig(**tiny.SHAPE))}, "EffptBertForMaskedLM.from_pretrained"),
        ({"args": lambda: TrainingArguments("out", use_cpu=True)}, "must be `EffptTrainingArguments`"),
        ({"model": lambda: tiny.model(vocab_size=64)}, "The tokenizer has 128 tokens but the model only 64"),
        ({"model": lambda: tiny.model(pad_token_id=1)}, "pads with id 0 but the model with 1"),
        ({"model": lambda: tiny.model(max_position_embeddings=8)}, "do not fit a model of 8 positions"),
        ({"model": lambda: roberta(16)}, "Rows of 16 tokens do not fit a model of 15 positions"),
        ({"train_dataset": Endless}, "pack the text first"),
        ({"train_dataset": lambda: [{"inputs_embeds": [[0.0]]}] * 8}, "have inputs_embeds, .* give them `input_ids`"),
        ({"model": adapted}, "has an adapter"),
        ({"args": lambda: tiny.arguments(Path(__file__, "out"))}, "is no folder; give another `training.output_dir`"),
        ({"train_dataset": lambda: tiny.rows(3)}, "3 rows, too few for one step of 4"),
        ({"optimizers": lambda: (torch.optim.SGD([torch.zeros(1)], 0.1), None)}, "optimizer_cls_and_kwargs"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_construction(tmp_path, parts, words):
    given = {
        "model": tiny.model,
        "args": lambda: tiny.arguments(tmp_path),
        "train_dataset": tiny.rows,
        "processing_class": tiny.tokenizer,
    } | parts
    with pytest.raises(EffptError, match=words):
        EffptTrainer(**{name: make() for name, make in given.items()})


def test_evaluates_at_shares_of_the_budget_and_off_the_clock(tmp_path):
    tokens_a_step = 4 * tiny.LENGTH
    settings = {"budget": f"{20 * tokens_a_step}tokens", "eval_strategy": "steps", "eval_steps": 0.25}
    trainer = tiny.trainer(tmp_path / "a", **settings)
    trainer.train()
    points = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in points] == [5, 10, 15]  # what is left to the end is evaluated there
    assert [entry["clock"] for entry in points] == [0.25, 0.5, 0.75]
    assert all({"tokens", "flops", "seconds", "joules"} <= set(entry) for entry in points)
    plain = tiny.trainer(tmp_path / "b", budget=settings["budget"])
    plain.train()
    assert all(
        torch.equal(left, right)
        for left, right in zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
    )


def test_methods_are_scheduled_before_rows_are_selected(tmp_path, monkeypatch):
    """So that rows are scored by what runs in the step, also in the first one after a resumption."""
    order = []
    for method, hook in ((LayerDrop, "schedule"), (LayerDrop, "frozen"), (Selection, "select")):
        stock = getattr(method, hook)

        def noted(self, *args, stock=stock, hook=hook):
            order.append(hook)
            return stock(self, *args)

        monkeypatch.setattr(method, hook, noted)
    tiny.trainer(tmp_path, {"layerdrop": {"p": 0.2}, "selection": dict(Selection.example)}, budget="2steps").train()
    assert order == ["schedule", "frozen", "select"] * 2
