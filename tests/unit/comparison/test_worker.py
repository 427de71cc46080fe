import json

import pytest
from filelock import FileLock

from hf_effpt.comparison import worker
from hf_effpt.comparison.arms import Arm
from hf_effpt.comparison.entries import curve, run_entry
from hf_effpt.comparison.grid import Run
from hf_effpt.core.errors import EffptError

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
    return {"recipe": run.recipe.resolved(), "resume": False, "evaluation": evaluation}


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_cleared_once(run, monkeypatch):
    monkeypatch.setattr(worker, "evaluate", lambda folder, **asked: {"scores": {}, "of": folder.name})
    worker.run(request(run, tasks=["blimp"], seeds=[5]))
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
    monkeypatch.setattr(worker, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    worker.run(request(run, tasks=["cola"], seeds=[5]))
    assert run.scores()["asked"]["tasks"] == ["cola"]


def test_a_run_that_another_process_is_at_is_left_alone(run):
    run.folder.parent.mkdir(parents=True)
    with (
        FileLock(run.folder.with_name(f".{run.folder.name}.lock")),
        pytest.raises(EffptError, match="Another process"),
    ):
        worker.run(request(run))


def test_a_run_ends_when_its_comparison_is_gone(monkeypatch):
    watcher = worker.EndWithComparison()
    watcher.on_step_end(None, None, None)
    monkeypatch.setattr("os.getppid", lambda: 1)
    watcher.parent = 12345
    with pytest.raises(EffptError, match="has ended"):
        watcher.on_step_end(None, None, None)


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "request.json"
    path.write_text(
        json.dumps({"recipe": {"data": {"dataset": "x"}, "models": {}}, "resume": False, "evaluation": {}})
    )
    monkeypatch.setattr("sys.argv", ["worker", str(path)])
    assert worker.main() == 2
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
