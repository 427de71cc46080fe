"""Averages of weights: what they are, that they are exported and evaluated, and that training does not notice them."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM

from hf_effpt.core.errors import EffptError
from hf_effpt.hub.export import export
from hf_effpt.training.averaging import Averaging
from tests import tiny

LAWA = {"kind": "lawa", "k": 3, "every": 0.25}
EMA = {"kind": "ema", "span": 0.2}


class Kept(tiny.TrainerCallback):
    """Copies the weights after each step."""

    def __init__(self, trainer):
        self.trainer, self.steps = trainer, []
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(tiny.weights(self.trainer.model))


def run(out, average, ledger=None, **changes):
    trainer = tiny.trainer(out, ledger, layers=2 if ledger is None else 4, average=average, **changes)
    kept = Kept(trainer)
    trainer.train()
    return trainer, kept.steps


def averaged(trainer):
    with trainer.average.applied():
        return tiny.weights(trainer.model)


def test_lawa_is_the_mean_of_the_last_weights_and_training_goes_on_without_it(tmp_path):
    trainer, steps = run(tmp_path / "a", LAWA)  # of eight steps, every second
    plain, _ = run(tmp_path / "b", None)
    tiny.assert_same_weights(plain.model, trainer.model)
    for name, weight in averaged(trainer).items():
        mean = (steps[3][name] + steps[5][name] + steps[7][name]) / 3
        assert torch.allclose(weight, mean, atol=1e-7), name
    tiny.assert_same_weights(plain.model, trainer.model)  # put back


def test_ema_forgets_by_the_clock(tmp_path):
    trainer, steps = run(tmp_path, EMA)
    kept = torch.exp(torch.tensor(-0.125 / 0.2))
    for name, weight in averaged(trainer).items():
        mean = steps[0][name]
        for step in steps[1:]:
            mean = kept * mean + (1 - kept) * step[name]
        assert torch.allclose(weight, mean, atol=1e-6), name


@pytest.mark.parametrize("average", [LAWA, EMA], ids=["lawa", "ema"])
def test_a_resumed_run_has_the_average_of_the_straight_one(tmp_path, average):
    straight, _ = run(tmp_path / "a", average, save_strategy="steps", save_steps=5)
    resumed = tiny.trainer(tmp_path / "b", layers=2, average=average)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    ours, theirs = averaged(straight), averaged(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = tiny.trainer(tmp_path / "c", layers=2, average=average)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))  # a finished run
    assert all(torch.equal(ours[name], weight) for name, weight in averaged(again).items())


def test_the_average_is_evaluated_and_exported(tmp_path):
    trainer, _ = run(tmp_path, LAWA)
    trainer.evaluate()
    trainer.save_model()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["average"] == {**LAWA, "span": 0.02, "weights": 3}
    found = record["evaluation"]
    assert found["held_out_loss"] != found["held_out_loss_last_weights"]
    with trainer.average.applied():
        expected = trainer.model.export()
    tiny.assert_same_weights(expected, AutoModelForMaskedLM.from_pretrained(tmp_path))
    trainer.average.restart()
    trainer.evaluate()
    assert trainer.evaluation["held_out_loss"] == found["held_out_loss_last_weights"]


@pytest.mark.parametrize("average", [LAWA, EMA], ids=["lawa", "ema"])
def test_an_exported_checkpoint_has_the_average_as_the_run_would(tmp_path, average):
    trainer, _ = run(tmp_path / "run", average, save_strategy="steps", save_steps=8)
    trainer.save_model()
    export(tmp_path / "run" / "checkpoint-8", tmp_path / "exported")
    ours, theirs = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("run", "exported"))
    tiny.assert_same_weights(ours, theirs)
    records = [json.loads((tmp_path / name / "run.json").read_text())["average"] for name in ("run", "exported")]
    assert records[0] == records[1]


def test_it_starts_anew_where_the_model_grows(tmp_path):
    trainer, steps = run(tmp_path, {**LAWA, "every": 0.125}, {"stacking": {"depth": 2, "at": [0.7]}})
    assert trainer.model.config.events[-1]["step"] == 6
    assert len(trainer.average.held) == 3  # after the growth, and of the two steps since
    assert averaged(trainer).keys() == steps[-1].keys()


def test_another_average_is_not_resumed_on(tmp_path):
    run(tmp_path, LAWA, save_strategy="steps", save_steps=5)
    for average in (None, EMA):
        other = tiny.trainer(tmp_path / "other", layers=2, average=average)
        with pytest.raises(EffptError, match=r"was saved with `training.average: .*lawa"):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    (tmp_path / "checkpoint-5" / "average.safetensors").write_bytes(b"cut")
    with pytest.raises(EffptError, match=r"`average.safetensors` is damaged"):
        tiny.trainer(tmp_path, layers=2, average=LAWA).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("lawa", "needs a `kind`"),
        ({"k": 5}, "needs a `kind`"),
        ({"kind": "swa"}, "kind"),
        ({"kind": "lawa", "kk": 5}, "did you mean `k`"),
        ({"kind": "lawa", "k": 1}, "k"),
        ({"kind": "lawa", "k": 10, "every": 0.2}, "more than there are"),
        ({"kind": "lawa", "span": 0.1}, "span.*kind"),
        ({"kind": "ema", "span": 1.5}, "span"),
    ],
)
def test_impossible_averages_are_refused_at_construction(value, says):
    with pytest.raises(EffptError, match=says):
        tiny.arguments("out", average=value)


def test_settings():
    assert Averaging.of({"kind": "ema"}) == Averaging("ema", span=0.02)
