"""What a run is charged for, and what it says of it."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from hf_effpt.core.method import Paper
from hf_effpt.core.registry import METHODS, register
from hf_effpt.core.row_method import RowMethod
from hf_effpt.core.token_losses import row_losses
from hf_effpt.training.meters import peak_flops
from tests import tiny


@dataclass
class Scoring(RowMethod):
    """Takes its time to choose."""

    name: ClassVar[str] = "scoring"
    summary: ClassVar[str] = "For tests."
    paper: ClassVar[Paper] = Paper("T", "A", 2020, "@misc{x}")

    def select(self, model, rows, context):
        SPENT.append(10.0)
        context.score_rows("losses", row_losses, rows)
        return rows


SPENT: list[float] = []


@pytest.mark.parametrize("charged", [True, False])
def test_a_method_pays_for_choosing_unless_told_otherwise(tmp_path, monkeypatch, charged):
    peak_flops(torch.device("cpu"), torch.float32)  # measured once, while there is still a clock
    register(Scoring)
    SPENT.clear()
    try:
        monkeypatch.setattr("hf_effpt.training.timekeeping.Timekeeper._now", lambda self: (sum(SPENT), 0.0))
        monkeypatch.setattr("hf_effpt.training.cost.time.perf_counter", lambda: sum(SPENT))
        trainer = tiny.trainer(tmp_path, {"scoring": {}}, budget="4steps", charge_methods=charged)
        trainer.train()
        assert trainer.clock.seconds == (40.0 if charged else 0.0)
        assert trainer.cost.method_seconds == {"scoring": 40.0}  # what it took is told in any case
        trainer.save_model()
        assert json.loads((tmp_path / "run.json").read_text())["costs"] == {"scoring": 40.0}
    finally:
        METHODS.pop("scoring")


def test_costs_of_methods_survive_a_resumption(tmp_path):
    settings = {"budget": "6steps", "save_strategy": "steps", "save_steps": 3}
    trainer = tiny.trainer(tmp_path, {"layerdrop": {"p": 0.5}}, **settings)
    trainer.train()
    before = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    spent = before["stateful_callbacks"]["ClockCallback"]["attributes"]["costs"]["layerdrop"]
    again = tiny.trainer(tmp_path, {"layerdrop": {"p": 0.5}}, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.cost.method_seconds["layerdrop"] > spent > 0


def test_the_record_says_how_far_the_learning_rate_has_decayed(tmp_path):
    trainer = tiny.trainer(tmp_path, budget="4steps")
    trainer.train()
    trainer.save_model()
    rate = json.loads((tmp_path / "run.json").read_text())["learning_rate"]
    assert rate == {"peak": 1e-3, "final": pytest.approx(0, abs=1e-12), "clock": 1.0}


@pytest.mark.usefixtures("counted")
def test_what_choosing_computes_is_charged_in_flops(tmp_path):
    register(Scoring)
    try:
        flops = {}
        for charged in (True, False):
            trainer = tiny.trainer(tmp_path / str(charged), {"scoring": {}}, budget="4steps", charge_methods=charged)
            trainer.train()
            flops[charged] = trainer.clock.flops
        assert flops[True] == pytest.approx(4 / 3 * flops[False])  # a forward pass for every forward and backward
    finally:
        METHODS.pop("scoring")


def test_choosing_is_charged_to_reference_time_as_it_was_measured(tmp_path, monkeypatch):
    peak_flops(torch.device("cpu"), torch.float32)  # measured once, while there is still a clock
    register(Scoring)
    SPENT.clear()
    monkeypatch.setattr("hf_effpt.training.reference_time_meter.time_of", lambda block, device: 1.0)
    monkeypatch.setattr("hf_effpt.training.cost.time.perf_counter", lambda: sum(SPENT))
    try:
        trainer = tiny.trainer(tmp_path, {"scoring": {}}, budget="24s_rst")
        trainer.train()
        # 1 s to train, 1 s to update, 1 s to score, as the table has it, and 10 s that were measured besides
        assert trainer.state.global_step == 2
        assert trainer.clock.reference_seconds == 26.0
    finally:
        METHODS.pop("scoring")


def test_a_run_that_was_killed_after_its_last_step_still_says_how_it_ended(tmp_path):
    settings = {"budget": "6steps", "save_strategy": "steps", "save_steps": 3}
    tiny.trainer(tmp_path, **settings).train()
    again = tiny.trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    again.save_model()
    assert json.loads((tmp_path / "run.json").read_text())["learning_rate"]["final"] == pytest.approx(0, abs=1e-12)
