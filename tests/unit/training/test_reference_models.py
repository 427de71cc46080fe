"""The model that a method compares with: what it has cost is charged, and what does not suit is refused."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification, BertModel

from hf_effpt.core.errors import EffptError
from hf_effpt.models import EffptBertConfig, EffptBertForMaskedLM
from tests import tiny
from tests.picking import run, selection, trained


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("holdout"))


@pytest.mark.parametrize("strategy", ["rho", "token_selection"])
def test_what_its_training_has_cost_is_charged_at_the_start(tmp_path, holdout, strategy):
    before = json.loads((holdout / "run.json").read_text())["clock"]
    ledger = selection(strategy, holdout=str(holdout))
    paid, free = (
        run(tmp_path / str(charged), ledger, charge_methods=charged, budget="4steps") for charged in (True, False)
    )
    own = paid.cost.method_flops["selection"] - before["flops"]
    assert own > 0
    assert paid.clock.flops - free.clock.flops == pytest.approx(before["flops"] + own)
    assert paid.kept == free.kept
    for charged, seconds in ((True, before["seconds"]), (False, 0.0)):
        trainer = run(tmp_path / "new", ledger, train=False, charge_methods=charged)
        here = trainer.cost.prepare_seconds["selection"] if charged else 0.0  # to make the selector ready
        assert trainer.clock.seconds == pytest.approx(seconds + here)
    for trainer, rest in ((paid, paid.clock.flops - before["flops"] - own), (free, free.clock.flops)):
        trainer.save_model()
        account = json.loads((Path(trainer.args.output_dir) / "run.json").read_text())["accounts"]["selection"]
        judged = account["scored"] or account["seen"]
        assert account["s_flops"] == pytest.approx(own / judged / (rest / account["trained"]))
        assert "had cost" in account["text"]


def test_one_that_was_trained_on_the_very_rows_is_warned_of(tmp_path, holdout, caplog, monkeypatch):
    tiny.trainer(tmp_path, selection("rho", holdout=str(holdout)), layers=2)
    assert "knows their noise" not in caplog.text
    monkeypatch.setattr("hf_effpt.training.reference_models.facts", lambda dataset: {"fingerprint": "these rows"})
    record = json.loads((holdout / "run.json").read_text()) | {"data": {"fingerprint": "these rows"}}
    shutil.copytree(holdout, tmp_path / "same")
    (tmp_path / "same" / "run.json").write_text(json.dumps(record))
    tiny.trainer(tmp_path, selection("rho", holdout=str(tmp_path / "same")), layers=2)
    assert "knows their noise as well; train it on text of its own" in caplog.text


def test_a_budget_that_its_training_has_used_up_is_refused(tmp_path, holdout):
    spent = json.loads((holdout / "run.json").read_text())["clock"]["flops"]
    trainer = tiny.trainer(tmp_path, selection("rho", holdout=str(holdout)), layers=2, budget=f"{spent / 2}flops")
    with pytest.raises(EffptError, match=r"before the run has cost `selection`.* give a longer one"):
        trainer.train()


def test_the_learning_rate_rises_in_what_is_left_of_the_budget(tmp_path, holdout):
    spent = json.loads((holdout / "run.json").read_text())["clock"]["flops"]
    trainer = run(tmp_path, selection("rho", holdout=str(holdout)), budget=f"{2 * spent}flops")
    assert trainer.cost.upfront_fraction == 0.5
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[0] == 0.0
    assert max(rates) > 0.7 * trainer.args.learning_rate
    again = tiny.trainer(tmp_path, selection("rho", holdout=str(holdout)), layers=2, budget=f"{2 * spent}flops")
    assert again.clock.fraction == 0.5


def test_one_without_a_record_is_used_and_not_charged(tmp_path, holdout, caplog):
    shutil.copytree(holdout, tmp_path / "model")
    (tmp_path / "model" / "run.json").unlink()
    trainer = run(tmp_path / "run", selection("rho", holdout=str(tmp_path / "model")), budget="2steps")
    assert "is not charged for it" in caplog.text
    assert trainer.cost.reference_costs == {}


def other_vocabulary(folder):
    EffptBertForMaskedLM(EffptBertConfig(**tiny.SHAPE | {"vocab_size": 192})).export().save_pretrained(folder)


def other_tokens(folder):
    tiny.model().export().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["w0"], vocabulary["w1"] = vocabulary["w1"], vocabulary["w0"]
    (folder / "tokenizer.json").write_text(json.dumps(told))


def without_weights(folder):
    tiny.model().export().save_pretrained(folder)
    (folder / "model.safetensors").unlink()


def damaged(folder):
    tiny.model().export().save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (None, "there is no such folder"),
        (lambda folder: folder.mkdir(), "cannot be loaded from"),
        (without_weights, "cannot be loaded from"),
        (damaged, "cannot be loaded from"),
        (other_vocabulary, r"another vocabulary \(192 rows, here 128"),
        (other_tokens, "another vocabulary"),
        (lambda folder: tiny.joint().export().save_pretrained(folder), "is a ElectraForPreTraining"),
        (lambda folder: BertModel(tiny.config().stock()).save_pretrained(folder), "is a BertModel"),
        (lambda folder: BertForSequenceClassification(tiny.config().stock()).save_pretrained(folder),
         "is a BertForSequenceClassification"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_compared_with_is_refused_when_a_trainer_is_made(tmp_path, make, told):
    folder = tmp_path / "model"
    if make is not None:
        make(folder)
    with pytest.raises(EffptError, match=told):
        tiny.trainer(tmp_path / "run", selection("rho", holdout=str(folder)))
