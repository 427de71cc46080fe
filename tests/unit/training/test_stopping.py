"""A signal stops a run after the step at hand: with a checkpoint, from which it ends like an undisturbed one."""

import os
import signal
import threading

import numpy as np
import pytest

from hf_effpt.cli import main as cli
from hf_effpt.core.errors import RunStopped
from hf_effpt.core.manifest import write_manifest
from hf_effpt.training import checkpoints
from hf_effpt.training.checkpoints import fault
from hf_effpt.training.stream import BatchStream
from tests import tiny
from tests.together import together


class Signalled(tiny.TrainerCallback):
    """Gets a signal within a step."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def trainer(out, *callbacks, **changes):
    made = tiny.trainer(out, layers=2, dropout=0.1, gradient_accumulation_steps=2, **changes)
    for callback in callbacks:
        made.add_callback(callback)
    return made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_saved_and_goes_on_like_an_undisturbed_run(tmp_path, number):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    stopped = trainer(tmp_path / "stopped", Signalled(number, 3))  # which saves no checkpoints otherwise
    with pytest.raises(RunStopped, match=r"SIG(TERM|INT): .* after step 4 and is saved in .*checkpoint-4"):
        stopped.train()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    resumed = trainer(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    straight = trainer(tmp_path / "straight")
    straight.train()
    tiny.assert_same_weights(straight.model, resumed.model)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()


def test_with_any_strategy_one_checkpoint_is_saved_at_the_end(tmp_path, monkeypatch):
    """At the end of the first epoch, within it, and where an evaluation has found that an earlier one is better."""
    written = []

    def manifest(folder):
        written.append(folder.name)
        write_manifest(folder)

    monkeypatch.setattr(checkpoints, "write_manifest", manifest)
    tiny.plant_losses(monkeypatch, [4.0])
    epochs = {"save_strategy": "epoch", "eval_strategy": "epoch", "budget": "13steps"}
    for step in (6, 2):
        with pytest.raises(RunStopped, match=f"checkpoint-{step}"):
            trainer(tmp_path / str(step), Signalled(signal.SIGTERM, step - 1), **epochs).train()
    assert written == ["checkpoint-6", "checkpoint-2"]
    best = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss",
            "load_best_model_at_end": True}  # fmt: skip
    tiny.plant_losses(monkeypatch, [5.0, 6.0, 7.0, 4.0, 4.0])
    with pytest.raises(RunStopped, match="checkpoint-4"):
        trainer(tmp_path / "best", Signalled(signal.SIGTERM, 3), **best).train()
    assert written[2:] == ["checkpoint-2", "checkpoint-4"]
    resumed = trainer(tmp_path / "best", **best)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.facts["best"] == {"step": 8, "loss": 4.0}


def test_a_run_that_stops_for_good_saves_a_step_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoints, "write_manifest", lambda folder: written.append(folder.name))
    stopping = trainer(tmp_path, tiny.StopAfter(6), save_strategy="epoch", budget="13steps")
    for _ in range(2):  # another run of the same trainer saves anew
        stopping.train()
    assert written == ["checkpoint-6", "checkpoint-6"]


def test_a_run_that_has_just_spent_its_budget_is_finished(tmp_path):
    done = trainer(tmp_path, Signalled(signal.SIGTERM, 7))
    done.train()
    assert done.clock.finished


def test_a_signal_of_torchrun_comes_twice_and_is_one(tmp_path):
    stopped = trainer(tmp_path, Signalled(signal.SIGTERM, 3), Signalled(signal.SIGTERM, 3))
    with pytest.raises(RunStopped, match=r"SIGTERM: .* after step 4"):
        stopped.train()


def test_a_second_signal_ends_at_once(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have had this process ignore
    impatient = trainer(tmp_path, Signalled(signal.SIGINT, 2), Signalled(signal.SIGINT, 2))
    with pytest.raises(KeyboardInterrupt):
        impatient.train()
    signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone(tmp_path):
    trained = trainer(tmp_path, budget="2steps", warmup_steps=0.5)
    thread = threading.Thread(target=trained.train)
    thread.start()
    thread.join()
    assert trained.clock.finished


def test_the_command_says_so_by_its_exit_code(monkeypatch, capsys):
    def stop(args):
        raise RunStopped("SIGTERM: the run has stopped")

    monkeypatch.setattr(cli.pretrain, "run", stop)
    assert cli.main(["pretrain", "tiny"]) == 75
    assert capsys.readouterr().err == "effpt: SIGTERM: the run has stopped\n"


SCRIPT = """
import os, signal
from hf_effpt.core.errors import RunStopped
from tests.unit.training.test_guard import poison
from tests.unit.training.test_stopping import Signalled, trainer

rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else int(os.environ["RANK"])
made = trainer(sys.argv[1] + "/run", *([Signalled(signal.SIGTERM, 2)] if rank == 1 else []))
if rank == 1:
    poison(made, [2])
try:
    made.train()
except RunStopped as stop:
    print(made.state.global_step, "stopped", made.guard.record()["batches"])
"""


def test_all_processes_stop_where_one_was_asked(tmp_path):
    together(tmp_path, SCRIPT)
    for rank in range(2):
        said = (tmp_path / f"said-{rank}.txt").read_text()
        # Both skipped the step whose gradients were not finite in one of them, and name the rows of both.
        assert f"3 stopped [{{'step': 2, 'phase': 0, 'rows': {_rows(16, 32)}}}]" in said
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert fault(checkpoint) is None
    (checkpoint / "rng_state_1.pth").unlink()
    assert fault(checkpoint) == "`rng_state_1.pth` is missing"


def _rows(first, last):
    return BatchStream(48, 1, seed=7).keys(np.arange(first, last))[:, 1].tolist()
