import json
import math
import os
import signal

import pytest
from filelock import FileLock

from hf_effpt.comparison import run_worker
from hf_effpt.comparison.arms import Arm
from hf_effpt.comparison.run_grid import Run
from hf_effpt.comparison.run_launcher import Runner
from hf_effpt.comparison.summary import curve, run_entry
from hf_effpt.core.errors import EffptError
from hf_effpt.training.trainer import EffptTrainer
from tests.processes import Started

WORDS = (
    "a the small large model layer token mask learns reads skips grows stacks drops from to of and with text".split()
)


@pytest.fixture
def run(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(40):
        (corpus / f"{number}.txt").write_text(" ".join(WORDS[(number * i + i * i) % len(WORDS)] for i in range(200)))
    sections = {
        "model": {"size": "tiny", "hidden_size": 32},
        "methods": {"layerdrop": {"p": 0.5}},
        "data": {"dataset": str(corpus), "sequence_length": 32, "vocab_size": 256, "validation": 0.1},
        "training": {"per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True, "use_cpu": True},
    }
    recipe = Arm("dropped", sections).recipe("8e3tokens", 5, str(tmp_path / "runs" / "budget-1"))
    return Run("dropped", 5, 1.0, recipe)


def request(run, **evaluation):
    return {"recipe": run.recipe.resolved(), "evaluation": evaluation}


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_cleared_once(run, monkeypatch):
    monkeypatch.setattr(run_worker, "evaluate", lambda folder, **asked: {"scores": {}, "of": folder.name})
    run_worker.run(request(run, tasks=["blimp"], seeds=[5]))
    assert not list(run.folder.glob("checkpoint-*"))
    assert run.scores() == {"asked": {"tasks": ["blimp"], "seeds": [5]}, "scores": {}, "of": "budget-1"}
    record = run.record()
    entry = run_entry(run, None)
    assert entry["state"] == "finished"
    assert entry["held_out_loss"] == record["evaluation"]["held_out_loss"]
    assert entry["final_learning_rate"] == pytest.approx(0, abs=1e-9)
    assert entry["clock"]["tokens"] >= 8e3
    assert set(entry["costs"]) == {"layerdrop"}
    # ten evaluations along the run, the last at its end
    assert [round(point["clock"], 1) for point in entry["curve"]] == pytest.approx(
        [n / 10 for n in range(1, 11)], abs=0.11
    )
    assert entry["curve"][-1]["loss"] == entry["held_out_loss"]
    monkeypatch.setattr(run_worker, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    run_worker.run(request(run, tasks=["cola"], seeds=[5]))
    assert run.scores()["asked"]["tasks"] == ["cola"]


@pytest.mark.slow
def test_a_run_that_diverges_is_called_so_and_not_tried_again(run, monkeypatch):
    """The gradients are planted to be no numbers from the fourth step on."""
    compute = EffptTrainer.compute_loss

    def poisoned(self, *args, **kwargs):
        return compute(self, *args, **kwargs) * (math.nan if self.state.global_step > 2 else 1.0)

    monkeypatch.setattr(EffptTrainer, "compute_loss", poisoned)
    sections = run.recipe.resolved()
    sections["training"] |= {"max_skipped_steps": 2, "logging_steps": 1}
    run_worker.run({"recipe": sections, "evaluation": {"tasks": ["blimp"]}})
    record = run.divergence()
    assert (record["step"], record["what"], record["last_loss_step"]) == (4, "gradients", 3)
    assert record["message"].startswith("The run has diverged: the gradients of 2 steps in a row, up to step 5")
    entry = run_entry(run, None)
    loss = next(one["loss"] for one in record["history"] if one["step"] == 3 and "loss" in one)
    assert entry["state"] == "diverged"
    said = f"gradients not finite from step 4 on; the last finite training loss is {loss:.4f} at step 3"
    assert entry["note"] == said
    assert entry["clock"]["steps"] == 5
    assert entry["curve"]  # up to there
    assert not list(run.folder.glob("checkpoint-*"))
    assert Runner({"tasks": ["blimp"]}).is_done(run)


def test_a_run_that_another_process_is_at_is_left_alone(run, tmp_path, monkeypatch):
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").touch()  # half a run, which is the other's
    path = tmp_path / "request.json"
    path.write_text(json.dumps({**request(run), "parent": os.getppid()}))
    monkeypatch.setattr("sys.argv", ["worker", str(path)])
    with FileLock(run.folder.with_name(f".{run.folder.name}.lock")):
        assert run_worker.main() == run_worker.BUSY
    assert (run.folder / "config.json").exists()


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_worker, "fault", lambda checkpoint: "cut short" if checkpoint.name == "checkpoint-9" else None
    )
    for name in ("checkpoint-3", "checkpoint-6", "checkpoint-9"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").touch()
    assert run_worker.last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-6")
    assert not (tmp_path / "run" / "checkpoint-9").exists()
    (tmp_path / "run" / "recipe.yaml").unlink()  # with which it could not be resumed
    assert run_worker.last_whole_checkpoint(tmp_path / "run") is None
    assert not (tmp_path / "run").exists()


def test_a_run_ends_when_its_comparison_is_gone(tmp_path):
    """The watcher's parent is another process than its own: it ends at once, whatever it is doing."""
    code = "import time; from hf_effpt.comparison.run_worker import end_with; end_with(1, 0.01); time.sleep(60)"
    assert Started(code, folder=tmp_path).wait(50) == -signal.SIGTERM


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "request.json"
    recipe = {"data": {"dataset": "x"}, "models": {}}
    path.write_text(json.dumps({"recipe": recipe, "evaluation": {}, "parent": os.getppid()}))
    monkeypatch.setattr("sys.argv", ["worker", str(path)])
    assert run_worker.main() == 2
    assert "has no section `models`" in capsys.readouterr().err


def test_a_curve_leaves_out_what_is_not_finite():
    point = {"clock": 0.5, "seconds": 1.0, "tokens": 5, "flops": 1.0, "joules": 3.6e6}
    history = [
        {"eval_loss": float("nan"), "step": 1, **point},
        {"loss": 3.0, "step": 1, **point},
        {"eval_loss": 2.0, "step": 2, **point},
        {"eval_loss": 1.9, "step": 2, **point},
    ]
    (found,) = curve(history)
    assert (found["loss"], found["kwh"]) == (1.9, 1.0)


def test_a_run_without_held_out_text_cannot_be_compared(run):
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps({"clock": {}}))
    with pytest.raises(EffptError, match=r"set `data.validation`"):
        run_entry(run, None)
