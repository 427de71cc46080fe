"""Runs on long rows whose documents are kept apart by blocks."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, Sequence, Value
from transformers import set_seed

from hf_effpt.core.clock import Clock
from hf_effpt.models.encoder_inputs import BLOCKS, MASK
from hf_effpt.pretraining import RunResult
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny

LENGTH = 1024


def isolated_rows(number=8):
    """Rows of documents of 3 to 300 tokens, with some padding."""
    random = np.random.default_rng(3)
    ids, numbers = np.zeros((2, number, LENGTH), np.uint16)
    for tokens, documents in zip(ids, numbers, strict=True):
        bounds = np.sort(random.choice(np.arange(3, LENGTH - 20), 5, replace=False))
        documents[: bounds[-1]] = np.repeat(np.arange(5) + 1, np.diff(bounds, prepend=0))
        tokens[: bounds[-1]] = random.integers(5, tiny.VOCAB, bounds[-1])
    columns = {name: Sequence(Value("uint16"), length=LENGTH) for name in ("input_ids", "document_ids")}
    return Dataset.from_dict({"input_ids": ids, "document_ids": numbers}, features=Features(columns))


def trainer_on(folder, backbone="bert", attention="sdpa", **changes):
    args = tiny.arguments(folder, **{"budget": "4steps", "per_device_train_batch_size": 2, **changes})
    set_seed(args.seed)
    model = tiny.masked_lm(backbone, dropout=0.1, num_hidden_layers=2, max_position_embeddings=LENGTH)
    model.set_attn_implementation(attention)
    rows = isolated_rows()
    return EffptTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tiny.tokenizer())


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_a_resumed_run_is_the_straight_one(tmp_path, backbone):
    straight = trainer_on(tmp_path, backbone)
    straight.add_callback(tiny.SaveAt([2]))
    straight.train()
    second = trainer_on(tmp_path / "resumed", backbone)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    tiny.assert_same_weights(straight.model, second.model)
    assert second.clock.flops == straight.clock.flops
    assert second.clock.steps == 4


def test_a_run_says_how_it_keeps_documents_apart(tmp_path):
    for attention, way in (("sdpa", BLOCKS), ("eager", MASK)):
        trainer = trainer_on(tmp_path / attention, attention=attention, budget="1steps")
        trainer.train()
        trainer.save_model()
        record = json.loads((tmp_path / attention / "run.json").read_text())
        assert record["attention"] == {"implementation": attention, "documents": way}
        told = RunResult(tmp_path / attention, Clock("steps", 4), facts={"attention": record["attention"]}).summary()
        assert f"Documents of a row were kept apart by {way}." in told


def test_rows_of_one_stream_say_nothing_of_documents(tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.save_model()
    assert json.loads((tmp_path / "run.json").read_text())["attention"] == {"implementation": "sdpa"}
    assert "kept apart" not in RunResult(tmp_path, trainer.clock, facts={"attention": {}}).summary()


def test_held_out_loss_is_that_of_a_mask(tmp_path):
    losses = []
    for attention in ("sdpa", "eager"):
        trainer = trainer_on(tmp_path, attention=attention)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
