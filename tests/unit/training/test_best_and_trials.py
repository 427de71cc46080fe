"""The best checkpoint is given back, training stops early, and `model_init` makes a model for each run."""

import json
import math
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import BestRun, HPSearchBackend

from hf_effpt.core.errors import EffptError, RunStopped
from tests import tiny


def trainer_of(folder, model=None, init=None, callbacks=None, **changes):
    trainer = tiny.EffptTrainer(
        model, tiny.arguments(folder, **changes), train_dataset=tiny.rows(), eval_dataset=tiny.rows(12, seed=1),
        processing_class=tiny.tokenizer(), model_init=init, callbacks=callbacks,
    )  # fmt: skip
    trainer.cost.counter = tiny.default_counter()
    return trainer


def test_stopped_early_the_best_model_is_exported_in_its_shape(tmp_path, monkeypatch):
    """It is that of before a growth, which here seems to do harm; and of checkpoints only one may be kept."""
    tiny.plant_losses(monkeypatch, [5.0, 4.0, 6.0, 7.0, 4.0])
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_of(
        tmp_path, tiny.model({"stacking": {"depth": 2, "at": [0.25]}}), callbacks=[EarlyStoppingCallback(2)],
        budget="20steps", load_best_model_at_end=True, save_total_limit=1, neftune_noise_alpha=1.0, **every,
    )  # fmt: skip
    trainer.train()
    assert (trainer.state.global_step, trainer.clock.steps) == (8, 8)
    best = tmp_path / "checkpoint-4"
    assert [*tmp_path.glob("checkpoint-*")] == [best]
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    trainer.save_model()
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
    name = "bert.encoder.layer.1.output.dense.weight"
    exported, saved = (load_file(folder / "model.safetensors") for folder in (tmp_path, best))
    assert exported[name].equal(saved[name])
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["best"] == {"step": 4, "loss": 4.0}
    assert record["evaluation"]["held_out_loss"] == 4.0


class Told(TrainerCallback):
    """Ends the process by a signal, as a scheduler does, before a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_told_to_end_keeps_its_last_checkpoint_beside_the_best(tmp_path, monkeypatch):
    """It goes on from there; once finished, another resumption gives the best model back again."""
    losses = {2: 5.0, 4: 4.0, 6: 6.0, 8: 7.0}

    def told(trainer, rows, ignore_keys, prefix):
        trainer.evaluation = {"held_out_loss": losses[trainer.state.global_step]}
        return {f"{prefix}_loss": trainer.evaluation["held_out_loss"]}

    monkeypatch.setattr("hf_effpt.training.trainer.held_out_metrics", told)
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}

    def run(limit, **changes):
        best = {"load_best_model_at_end": True, "save_total_limit": limit}
        return trainer_of(tmp_path, tiny.model(num_hidden_layers=2), **every, **best, **changes)

    with pytest.raises(RunStopped, match="checkpoint-6"):
        run(1, callbacks=[Told()]).train()
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    resumed = run(2)
    resumed.train(resume_from_checkpoint=True)
    finished = run(2)
    finished.train(resume_from_checkpoint=True)
    for trainer in (resumed, finished):
        assert trainer.facts["best"] == {"step": 4, "loss": 4.0}
    tiny.assert_same_weights(resumed.model, finished.model)


def test_stopping_early_without_a_metric_is_refused(tmp_path):
    with pytest.raises(EffptError, match=r"`training\.metric_for_best_model` is left out"):
        trainer_of(tmp_path, tiny.model(), callbacks=[EarlyStoppingCallback()])
    with pytest.raises(EffptError, match=r"`training\.eval_strategy` is no"):
        trainer_of(tmp_path, tiny.model(), callbacks=[EarlyStoppingCallback()], metric_for_best_model="loss")
    with pytest.raises(EffptError, match="is `accuracy`, and evaluation computes the loss only"):
        trainer_of(tmp_path, tiny.model(), metric_for_best_model="accuracy")


class TrialPruned(Exception):
    """Stand-in for the exception of Optuna of this name."""


class Trial:
    def __init__(self, number):
        self.number, self.params, self.attributes = number, {}, {}

    def set_user_attr(self, name, value):
        self.attributes[name] = value


class Search:
    """A backend of searches in the place of Optuna, which may not be installed: it tries learning rates in turn."""

    @staticmethod
    def ensure_available():
        pass

    def run(self, trainer, n_trials, direction):
        Search.last, Search.pruned = [], []
        for trial in map(Trial, range(n_trials)):
            try:
                trainer.train(trial=trial)
            except TrialPruned as pruned:
                Search.pruned.append((trial.number, str(pruned), trial.attributes))
                continue
            objective = trainer.compute_objective(trainer.evaluate())
            self.last.append((trainer.args.learning_rate, trainer.state.global_step, objective))
            trainer.model = trainer.model_wrapped = None  # as the stock backends do
        if not self.last:
            raise ValueError("No trials are completed yet.")
        return BestRun("0", self.last[0][2], {})


@pytest.fixture
def optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(TrialPruned=TrialPruned))
    backends = {HPSearchBackend.OPTUNA: Search}
    monkeypatch.setattr("transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS", backends)
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    monkeypatch.setattr("hf_effpt.training.cost.FlopCounter", tiny.default_counter)


def test_each_trial_of_a_search_has_a_fresh_model_and_its_own_arguments(tmp_path, optuna):
    made = []

    def make():
        made.append(tiny.model({"layerdrop": {"p": 0.5}}))
        return made[-1]

    trainer = trainer_of(tmp_path, init=make, budget="2steps", save_strategy="steps", save_steps=2)
    space = [{"learning_rate": rate, "budget": f"{steps}steps"} for rate, steps in ((1e-3, 2), (1e-2, 3), (1e-3, 2))]
    best = trainer.hyperparameter_search(lambda trial: space[trial.number], n_trials=3, backend="optuna")
    assert [(rate, steps) for rate, steps, _ in Search.last] == [(1e-3, 2), (1e-2, 3), (1e-3, 2)]
    assert Search.last[0][2] == Search.last[2][2] != Search.last[1][2]  # equal arguments, equal run
    assert best.objective == pytest.approx(4.85, abs=0.1)  # the held-out loss
    assert len({id(model) for model in made}) == len(made) == 4  # one more for the checks of the trainer
    assert (tmp_path / "run-1" / "checkpoint-3").is_dir()


def test_a_trial_that_fails_ends_alone(tmp_path, optuna):
    """The weights of one are planted to be no numbers, another is refused, and the third ends like one of its own."""
    rates = [1e-3, 0.0, 1e-3]

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if trainer._trial.number == 0:
                torch.nn.init.constant_(next(model.parameters())[0], math.nan)

    saving = {"budget": "2steps", "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(tmp_path, init=lambda: tiny.model(), callbacks=[Break()], **saving)
    trainer.hyperparameter_search(lambda trial: {"learning_rate": rates[trial.number]}, n_trials=3, backend="optuna")
    assert [number for number, _, _ in Search.pruned] == [0, 1]
    diverged, refused = (attributes["error"] for _, _, attributes in Search.pruned)
    assert diverged.startswith("The run has diverged")
    assert refused.startswith("`training.learning_rate` must be above 0")
    alone = trainer_of(tmp_path / "alone", init=lambda: tiny.model(), **saving)
    alone.train()
    assert Search.last == [(1e-3, 2, alone.evaluate()["eval_loss"])]
    with pytest.raises(EffptError, match=r"Each trial of the search has failed"):
        trainer.hyperparameter_search(lambda trial: {"learning_rate": 0.0}, n_trials=1, backend="optuna")


def test_a_signal_ends_the_whole_search(tmp_path, optuna):
    trainer = trainer_of(tmp_path, init=lambda: tiny.model(num_hidden_layers=1), callbacks=[Told()])
    with pytest.raises(RunStopped):
        trainer.hyperparameter_search(lambda trial: {"learning_rate": 1e-3}, n_trials=2, backend="optuna")


@pytest.mark.parametrize("given", [{}, {"model": "a model", "init": tiny.model}])
def test_a_trainer_needs_a_model_or_a_model_init(tmp_path, given):
    with pytest.raises(EffptError, match="needs a `model` or a `model_init`"):
        trainer_of(tmp_path, **given)
