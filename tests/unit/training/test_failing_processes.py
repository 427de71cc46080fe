"""A process that fails, is killed or is late ends the others soon, with a line that says which and why."""

import os
import re
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from hf_effpt.training.checkpoints import fault
from tests.processes import Started
from tests.together import BEGIN, environment_of

# Each case in two processes of their own, forked from two that have done the imports.
SCRIPT = """
import errno, os, signal, time, traceback
from pathlib import Path
from hf_effpt.core.errors import EffptError
from tests import tiny

class At4(tiny.TrainerCallback):
    def __init__(self, act):
        self.act = act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.act()

def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

def act(case, rank):
    if case == "raises" and rank == 1:
        raise KeyError("what this row lacks")
    if case == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "full" and rank == 0:
        torch.save = full
    if case == "late" and rank == 1:
        time.sleep(6)

def run(case, rank):
    out = Path(sys.argv[1], case)
    trainer = tiny.trainer(out, layers=1, save_strategy="steps", save_steps=3, ddp_timeout=3)
    trainer.add_callback(At4(lambda: act(case, rank)))
    trainer.train()

rank = int(os.environ["RANK"])
for number, case in enumerate(sys.argv[2:]):
    child = os.fork()
    if child == 0:
        os.environ["MASTER_PORT"] = os.environ["PORTS"].split()[number]
        file = os.open(f"{sys.argv[1]}/{case}-{rank}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1), os.dup2(file, 2)
        try:
            run(case, rank)
        except EffptError as error:
            print("effpt:", error, flush=True)
            os._exit(2)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)
    os.waitpid(child, 0)
os._exit(0)
"""
SURVIVOR = {
    "raises": (0, r"Process 1 of 2 has failed: KeyError: 'what this row lacks'\."),
    "killed": (0, r"Process 1 of 2 was killed, or has ended without saying why\."),
    "full": (1, r"Process 0 of 2 has failed: The disk is full and \S*checkpoint-6 could not be saved"),
    "late": (0, r"Process 1 of 2 did not answer within `training.ddp_timeout`\."),
}


@pytest.mark.slow
def test_the_others_end_and_say_why(tmp_path, subtests):
    wait = timedelta(seconds=30)
    # Like those of `torchrun` they outlive the processes.
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=wait) for _ in SURVIVOR]
    ports = " ".join(str(store.port) for store in stores)
    here = environment_of(2, 0) | {"TORCHELASTIC_USE_AGENT_STORE": "True", "PORTS": ports}
    running = [
        Started(
            BEGIN + SCRIPT, str(tmp_path), *SURVIVOR, folder=tmp_path, name=f"said-{rank}.txt", path=[os.getcwd()],
            environment=here | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [process.wait(100) for process in running]
    assert not any(ended), [process.said for process in running]
    for case, (rank, said) in SURVIVOR.items():
        with subtests.test(case):
            lines = (tmp_path / f"{case}-{rank}.txt").read_text()
            whole = tmp_path / case / "checkpoint-3"
            assert re.search(rf"effpt: {said}.*Go on with `--resume \S*checkpoint-3`, which is whole\.\n$", lines), (
                lines
            )
            assert fault(whole) is None
            assert not (tmp_path / case / "model.safetensors").exists()
