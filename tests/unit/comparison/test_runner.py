"""How runs are made, with a worker that only pretends to train."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from hf_effpt.comparison.arms import Arm
from hf_effpt.comparison.markdown import markdown
from hf_effpt.comparison.run_grid import grid
from hf_effpt.comparison.run_launcher import Runner, gpus_of
from hf_effpt.comparison.run_worker import BUSY
from hf_effpt.comparison.summary import report
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from tests.processes import Started

WORKER = """
import json, os, pathlib, sys, time
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
folder = pathlib.Path(request["recipe"]["training"]["output_dir"])
world = folder.parents[4]
with (world / "order.txt").open("a") as order:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    order.write(f"{folder.parts[-3]} {folder.parts[-2]} {gpu}\\n")
if (world / f"fail-{folder.parts[-3]}").exists():
    print("it is out of memory")
    sys.exit(3)
running = world / f"running-{os.getpid()}"
running.touch()
time.sleep(float(os.environ.get("PRETEND", "0")))
with (world / "together.txt").open("a") as together:
    together.write(f"{len(list(world.glob('running-*')))}\\n")
running.unlink()
folder.mkdir(parents=True, exist_ok=True)
record = {"evaluation": {"held_out_loss": 5.0}, "clock": {"seconds": 1.0}}
(folder / "run.json").write_text(json.dumps(record))
if request["evaluation"]:
    (folder / "evaluation.json").write_text(json.dumps({"asked": request["evaluation"], "scores": {}}))
"""
SECTIONS = {"model": {"size": "tiny"}, "data": {"dataset": "corpus/"}}


class Pretending(Runner):
    def command(self, run, request):
        return [sys.executable, "-c", WORKER, str(request)]


def runs_in(folder, seeds=(0, 1)):
    return grid([Arm("a", SECTIONS), Arm("b", SECTIONS)], Clock.parse("8steps"), seeds, [1.0], folder / "out")


def order(folder):
    return [line.split()[:2] for line in (folder / "order.txt").read_text().splitlines()]


def test_runs_in_order_and_not_twice(tmp_path):
    runs = runs_in(tmp_path)
    assert Pretending({}).make(runs) == {}
    assert order(tmp_path) == [["a", "seed-0"], ["b", "seed-0"], ["b", "seed-1"], ["a", "seed-1"]]
    assert Pretending({}).make(runs_in(tmp_path, seeds=(0, 1, 2))) == {}  # one more seed
    assert order(tmp_path)[4:] == [["a", "seed-2"], ["b", "seed-2"]]


def test_a_failed_run_is_named_and_tried_again(tmp_path):
    runs = runs_in(tmp_path)
    (tmp_path / "fail-b").touch()
    failed = Pretending({}).make(runs)
    assert {(run.arm, run.seed) for run in failed} == {("b", 0), ("b", 1)}
    assert all("it is out of memory" in fault for fault in failed.values())
    (tmp_path / "fail-b").unlink()
    assert Pretending({}).make(runs) == {}
    assert order(tmp_path)[4:] == [["b", "seed-0"], ["b", "seed-1"]]


def test_a_diverged_run_is_an_outcome_and_not_tried_again(tmp_path):
    runs = runs_in(tmp_path, seeds=(0,))
    diverged = {"step": 7, "what": "weights", "last_loss": None, "clock": {"steps": 6}, "history": []}
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "diverged.json").write_text(json.dumps(diverged))
    assert Pretending({"tasks": ["blimp"]}).make(runs) == {}
    assert order(tmp_path) == [["a", "seed-0"]]
    found = report([Arm("a", SECTIONS), Arm("b", SECTIONS)], runs, Clock.parse("8steps"))
    (note,) = (note for note in found["notes"] if note.startswith("b, "))
    assert note.endswith("diverged (weights not finite from step 7 on; no finite loss was logged)")
    assert found["arms"][1]["verdict"]["text"] == "No verdict: seed 0 has diverged."
    assert "| b | 0 | 1 | diverged" in markdown(found)
    with pytest.raises(EffptError, match=r"Lower its `training.learning_rate`, and name another `--out`"):
        report([Arm("b", SECTIONS), Arm("a", SECTIONS)], runs, Clock.parse("8steps"))


def test_a_run_is_done_when_it_is_evaluated_as_asked(tmp_path):
    runs = runs_in(tmp_path, seeds=(0,))
    Pretending({}).make(runs)
    assert Pretending({"tasks": ["blimp"]}).is_done(runs[0]) is False
    evaluating = Pretending({"tasks": ["blimp"]})
    assert evaluating.make(runs) == {}
    assert evaluating.is_done(runs[0])
    assert json.loads((runs[0].folder / "evaluation.json").read_text())["asked"] == {"tasks": ["blimp"], "seeds": [0]}
    assert not Pretending({"tasks": ["blimp", "cola"]}).is_done(runs[0])


def test_a_run_that_another_process_makes_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Pretending, "command", lambda self, run, request: [sys.executable, "-c", f"raise SystemExit({BUSY})"]
    )
    (first, *_) = runs_in(tmp_path)
    assert "another process" in Pretending({}).make([first])[first]


def test_a_run_that_was_killed_is_said_to_be(tmp_path, monkeypatch):
    code = "import os, signal; print('training 40%', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(Pretending, "command", lambda self, run, request: [sys.executable, "-c", code])
    (first, *_) = runs_in(tmp_path)
    assert "killed by SIGKILL" in Pretending({}).make([first])[first]


def test_what_another_process_has_finished_meanwhile_is_not_made_again(tmp_path):
    runs = runs_in(tmp_path, seeds=(0,))

    class Shared(Pretending):
        def command(self, run, request):
            if run is runs[0]:  # while it runs, the other process finishes the next
                Pretending({}).make(runs[1:])
            return super().command(run, request)

    Shared({}).make(runs)
    assert sorted(order(tmp_path)) == [["a", "seed-0"], ["b", "seed-0"]]


def test_runs_on_several_gpus_at_once_one_on_each(tmp_path, monkeypatch):
    monkeypatch.setenv("PRETEND", "0.5")
    Pretending({}, gpus=["0", "3"]).make(runs_in(tmp_path, seeds=(0, 1, 2)))
    used = {line.split()[2] for line in (tmp_path / "order.txt").read_text().splitlines()}
    assert used == {"0", "3"}
    together = [int(line) for line in (tmp_path / "together.txt").read_text().split()]
    assert max(together) == 2
    assert len(together) == 6


def test_gpus_that_are_not_there_are_refused():
    assert gpus_of(None) == []
    with pytest.raises(EffptError, match="no GPU 9"):
        gpus_of("9")
    with pytest.raises(EffptError, match="no GPU first"):
        gpus_of("first")


def test_gpus_are_counted_among_those_that_can_be_seen(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus_of("0,1") == ["2", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus_of("1") == ["1"]


# A shell has what it starts in the background ignore interruptions, and the tests may be run so.
DRIVER = """
import pathlib, signal, sys
from tests.unit.comparison.test_runner import Pretending, runs_in
signal.signal(signal.SIGINT, signal.default_int_handler)
Pretending({}).make(runs_in(pathlib.Path(sys.argv[1])))
"""


def driver(folder, pretend):
    environment = {**os.environ, "PRETEND": pretend}
    return Started(DRIVER, str(folder), folder=folder, environment=environment, path=[str(Path(__file__).parents[3])])


def test_a_killed_comparison_keeps_its_finished_runs(tmp_path):
    process = driver(tmp_path, pretend="0.3")
    first = runs_in(tmp_path)[0].folder / "run.json"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # the run that was under way ends by itself here; a real one sees that its parent is gone
    before = len(order(tmp_path))
    assert before < 4
    finished = sum(run.record() is not None for run in runs_in(tmp_path))
    assert Pretending({}).make(runs_in(tmp_path)) == {}
    assert len(order(tmp_path)) == before + 4 - finished
    assert order(tmp_path).count(["a", "seed-0"]) == 1


def test_an_interruption_ends_the_run_under_way(tmp_path):
    process = driver(tmp_path, pretend="60")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("running-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    (pid,) = (int(path.name.split("-")[1]) for path in tmp_path.glob("running-*"))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 1
    assert "KeyboardInterrupt" in process.said
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
