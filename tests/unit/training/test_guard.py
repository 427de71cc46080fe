"""Steps whose gradients are not finite change nothing and are told; a run that diverges stops and is not exported."""

import json
import math

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.hub.folders import checkpoints_in
from hf_effpt.training import guard
from hf_effpt.training.checkpoints import fault
from hf_effpt.training.muon import Muon
from tests import tiny

SMALL = {"layers": 1, "budget": "5steps", "warmup_steps": 0.2}


def poison(trainer, steps, value=math.nan):
    """Makes the loss of a micro-batch of each of some steps, and with it all gradients, NaN or infinite."""
    compute, done = trainer.compute_loss, set()

    def poisoned(*args, **kwargs):
        loss, step = compute(*args, **kwargs), trainer.state.global_step + 1
        if step in steps and step not in done:
            done.add(step)
            return loss * value
        return loss

    trainer.compute_loss = poisoned
    return trainer


class Watch(tiny.TrainerCallback):
    """Keeps copies of weights and optimizer state after each step, and the rows of each."""

    def __init__(self, trainer):
        self.trainer, self.after, self.rows = trainer, [], [[]]
        collate = trainer.data_collator
        trainer.data_collator = lambda rows: (self.rows[-1].extend(rows["example_id"].tolist()), collate(rows))[1]
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        found = [*model.parameters(), *(t for one in optimizer.state.values() for t in one.values())]
        self.after.append([torch.as_tensor(tensor).clone() for tensor in found])
        self.rows.append([])

    def moved(self, step):
        before, after = self.after[step - 2], self.after[step - 1]
        return not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def refused(constant):
    raise ValueError(f"{constant} is no JSON")


@pytest.mark.parametrize(
    "changes",
    [{}, {"optim": "muon"}, {"optim": "adamw_torch"}, {"bias_correction": False, "max_grad_norm": 0.0}],
    ids=["fused", "muon", "not fused", "uncorrected, not clipped"],
)
def test_a_planted_batch_is_skipped_and_its_rows_are_named(tmp_path, changes):
    trainer = tiny.trainer(tmp_path, gradient_accumulation_steps=2, **SMALL, **changes)
    poison(poison(trainer, {3}), {4}, math.inf)
    watch = Watch(trainer)
    trainer.train()
    assert [watch.moved(step) for step in (2, 3, 4, 5)] == [True, False, False, True]
    batches = [{"step": step, "phase": 0, "rows": watch.rows[step - 1]} for step in (3, 4)]
    assert trainer.guard.record() == {"steps": 2, "in_a_row": 0, "batches": batches}
    assert [entry.get("skipped_steps") for entry in trainer.state.log_history[:5]] == [None, None, 1, 2, 2]
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_what_was_skipped_is_kept_in_strict_json_and_by_a_resumed_run(tmp_path):
    trainer = poison(tiny.trainer(tmp_path, saved=[3], **SMALL), {2})
    trainer.train()
    trainer.save_model()
    files = list(tmp_path.rglob("*.json"))
    assert {"run.json", "trainer_state.json", "manifest.json"} <= {file.name for file in files}
    for file in files:
        json.loads(file.read_text(), parse_constant=refused)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["skipped"]["steps"] == 1
    assert [entry["loss"] is None for entry in record["history"][:3]] == [False, True, False]
    resumed = tiny.trainer(tmp_path, **SMALL)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    tiny.assert_same_weights(trainer.model, resumed.model)
    assert resumed.guard.record() == trainer.guard.record() == record["skipped"]


def test_stock_filtering_of_the_logged_loss_goes_on_working(tmp_path):
    trainer = poison(tiny.trainer(tmp_path, logging_nan_inf_filter=True, logging_steps=5, **SMALL), {3})
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_a_run_that_diverges_stops_and_goes_on_from_before(tmp_path):
    saving = {**SMALL, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_skipped_steps": 3}
    diverging = poison(tiny.trainer(tmp_path / "run", **saving), range(3, 9))
    last = tmp_path / "run" / "checkpoint-2"
    with pytest.raises(EffptError, match=rf"gradients of 3 steps in a row, up to step 5, .* `--resume {last}`"):
        diverging.train()
    assert [folder.name for folder in checkpoints_in(tmp_path / "run")] == [f"checkpoint-{n}" for n in (2, 3, 4)]
    assert fault(last) is None
    assert not (tmp_path / "run" / "config.json").exists()
    resumed, straight = (tiny.trainer(tmp_path / name, **saving) for name in ("run", "straight"))
    resumed.train(resume_from_checkpoint=str(last))
    straight.train()
    tiny.assert_same_weights(straight.model, resumed.model)
    assert len(checkpoints_in(tmp_path / "run")) == 1  # it is sound again


def test_a_run_that_logs_nothing_stops_too(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "EVERY", 2)
    trainer = poison(tiny.trainer(tmp_path, logging_strategy="no", max_skipped_steps=1, **SMALL), {1})
    with pytest.raises(EffptError, match=r"of step 0\. Lower .*, and start anew"):
        trainer.train()
    assert trainer.state.global_step == 1  # in the second step


def test_weights_that_are_not_finite_are_neither_saved_nor_exported(tmp_path):
    trainer = tiny.trainer(tmp_path, saved=[2, 3], **SMALL)

    class Break(tiny.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                torch.nn.init.constant_(next(model.parameters())[0], math.inf)

    trainer.add_callback(Break())
    with pytest.raises(EffptError, match=r"`bert\S+weight` is not finite after step 3.*--resume .*checkpoint-2`"):
        trainer.train()
    assert [folder.name for folder in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    with pytest.raises(EffptError, match="is not finite after step 3, so it is not saved"):
        trainer.save_model()
    assert not (tmp_path / "config.json").exists()


def test_a_held_out_loss_that_is_not_finite_is_not_exported(tmp_path):
    trainer = tiny.trainer(tmp_path, **SMALL)
    trainer.evaluation = {"held_out_loss": math.nan}
    with pytest.raises(EffptError, match=r"its held-out loss is nan, so no .*\. Lower .*, and start anew"):
        trainer.save_model()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_with_a_flag_of_zero_is_muon_without_one(nesterov):
    stepped = []
    for flags in ([None, None], [torch.zeros(()), torch.zeros(())], [torch.zeros(()), torch.ones(())]):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 12))
        optimizer = Muon([{"params": [weight], "matrices": 2}], lr=0.1, nesterov=nesterov, weight_decay=0.3)
        for flag in flags:
            weight.grad = torch.randn(8, 12)
            optimizer.found_inf = flag
            stepped.append([weight.detach().clone(), *optimizer.state[weight].values()])
            optimizer.step()
        stepped.append([weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()])
    without, zero, one = stepped[2], stepped[5], stepped[8]
    assert all(torch.equal(a, b) for a, b in zip(without, zero, strict=True))
    assert torch.equal(one[0], stepped[7][0])
    assert not torch.equal(one[0], without[0])


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_steps_below_one_is_refused(tmp_path, number):
    with pytest.raises(EffptError, match=r"`training.max_skipped_steps` must be between 1 and"):
        tiny.arguments(tmp_path, max_skipped_steps=number)
