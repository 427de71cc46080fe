"""Models with stacking that are loaded from trained weights."""

import logging

import pytest
import torch

from hf_effpt import StackableBertForMaskedLM, StackableBertForSequenceClassification
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from tests import tiny


@pytest.fixture
def grown(tmp_path):
    trainer = tiny.trainer(tmp_path, {"stacking": {"depth": 2, "at": [0.5]}})
    trainer.train()
    trainer.save_model()
    return tmp_path


def test_an_exported_model_runs_all_its_layers_and_none_grow(grown, caplog):
    ids = torch.randint(5, tiny.VOCAB, (2, 8))
    with caplog.at_level(logging.WARNING, logger="hf_effpt"):
        again = StackableBertForMaskedLM.from_pretrained(grown).eval()
    assert "all 4 layers run and none grow" in caplog.text
    assert stack_of(again.bert).order == (0, 1, 2, 3)
    before = again(ids).logits
    again.methods[0].advance(again.bert, RunContext(5, 0.9))
    assert torch.equal(again(ids).logits, before)
    assert StackableBertForSequenceClassification.from_pretrained(grown).config.layer_order == [0, 1, 2, 3]


def test_a_shallow_checkpoint_stays_shallow(tmp_path):
    trainer = tiny.trainer(
        tmp_path, {"stacking": {"depth": 2, "at": [0.9]}}, budget="4steps", save_strategy="steps", save_steps=2
    )
    trainer.train()
    again = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2")
    assert stack_of(again.bert).order == (0, 1)
    again.methods[0].advance(again.bert, RunContext(5, 0.95))
    assert stack_of(again.bert).order == (0, 1, 2, 3)
