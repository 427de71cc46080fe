"""Settings that are changed when a run is resumed take effect and are recorded, or are refused."""

import json
import shutil

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.hub.card import model_card
from tests import tiny


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of eight steps with a checkpoint after four."""
    out = tmp_path_factory.mktemp("begun")
    trainer = tiny.trainer(out, layers=2, save_strategy="steps", save_steps=4, save_total_limit=None)
    trainer.train()
    return out


def resumed(begun, out, at=4, **changes):
    trainer = tiny.trainer(out, layers=2, **changes)
    trainer.train(resume_from_checkpoint=str(begun / f"checkpoint-{at}"))
    return trainer


def rates(trainer):
    return {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({"weight_decay": 0.3}, "weight_decay", {0.3, 0.0}),
        ({"adam_beta1": 0.5}, "betas", {(0.5, 0.98)}),
        ({"adam_epsilon": 1e-3}, "eps", {1e-3}),
        ({"learning_rate": 5e-4}, "initial_lr", {5e-4}),
    ],
)
def test_settings_of_the_optimizer_take_effect(begun, tmp_path, changes, key, expected):
    trainer = resumed(begun, tmp_path, **changes)
    assert {group[key] for group in trainer.optimizer.param_groups} == expected


def test_the_rate_is_that_asked_for_from_the_first_step_on(begun, tmp_path):
    whole = tiny.trainer(tmp_path / "whole", layers=2, learning_rate=5e-4)
    whole.train()
    trainer = resumed(begun, tmp_path / "resumed", learning_rate=5e-4)
    expected = rates(whole)
    assert {step: rate for step, rate in rates(trainer).items() if step > 4} == pytest.approx(
        {step: rate for step, rate in expected.items() if step > 4}
    )


def test_a_finished_run_goes_on_at_the_rate_of_its_new_budget(begun, tmp_path):
    trainer = resumed(begun, tmp_path, at=8, budget="16steps")
    whole = tiny.trainer(tmp_path / "whole", layers=2, budget="16steps")
    whole.train()
    assert rates(trainer)[9] == pytest.approx(rates(whole)[9])
    assert rates(trainer)[9] > 0
    assert trainer.state.global_step == 16


def test_the_record_and_the_card_tell_both_parts(begun, tmp_path):
    trainer = resumed(begun, tmp_path, learning_rate=5e-4, weight_decay=0.3)
    trainer.save_model()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["parts"] == [{"step": 4, "learning_rate": [1e-3, 5e-4], "weight_decay": [0.01, 0.3]}]
    said = "From step 4 on it was trained with `learning_rate: 0.0005` (before: 0.001), `weight_decay: 0.3`"
    assert said in str(model_card(record))


def test_a_part_is_told_once(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    changes = {"learning_rate": 5e-4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    resumed(begun, tmp_path / "run", **changes)
    again = resumed(tmp_path / "run", tmp_path / "again", at=6, learning_rate=5e-4)
    assert [part["step"] for part in again.saver.parts] == [0, 4]
    plain = resumed(begun, tmp_path / "plain")
    assert [part["step"] for part in plain.saver.parts] == [0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optim": "adafactor"}, r"was saved with `optim: adamw_torch_fused`.* now adafactor"),
        ({"optim": "muon"}, r"was saved with `optim: adamw_torch_fused`.* now muon"),
        ({"data_seed": 3}, r"was saved with `data_seed: 7`.* now 3"),
        ({"seed": 3}, r"was saved with `data_seed: 7`.* now 3"),
        ({"decay_all": True}, r"was saved with `decay_all: false`"),
    ],
)
def test_what_the_state_is_made_for_is_refused(begun, tmp_path, changes, says):
    with pytest.raises(EffptError, match=says):
        resumed(begun, tmp_path, **changes)


def test_the_same_adamw_by_another_kernel_is_not(begun, tmp_path):
    assert resumed(begun, tmp_path, optim="adamw_torch").state.global_step == 8


def test_what_the_user_has_frozen_stays_frozen(tmp_path):
    def begun(**changes):
        trainer = tiny.trainer(tmp_path, layers=2, budget="4steps", **changes)
        trainer.model.bert.embeddings.requires_grad_(False)
        return trainer

    straight = begun(saved=[2])
    straight.train()
    resumed = begun()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    tiny.assert_same_weights(straight.model, resumed.model)
    assert not any(weight.requires_grad for weight in resumed.model.bert.embeddings.parameters())
    assert resumed.model.bert.encoder.layer[0].output.dense.weight.requires_grad
