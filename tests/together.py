"""Processes that train together, for tests: each runs the same script and finds the others as `torchrun` would say."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.processes import Started

BEGIN = """
import faulthandler, sys
faulthandler.dump_traceback_later(220, exit=True)  # says where it waits, before the test is given up
import torch
torch.set_num_threads(1)
"""
# What takes a process group down at the end of an interpreter waits for others or aborts, now and then.
END = """
torch.distributed.barrier()
sys.stdout.flush()
sys.stderr.flush()
__import__("os")._exit(0)
"""


def together(folder: Path, script: str, *arguments: str, processes: int = 2) -> None:
    """Runs a script in so many processes at once, which talk through gloo, and waits for them.

    Args:
        folder (`Path`): what it writes to.
        script (`str`): which finds `folder` and the arguments in `sys.argv`.
        processes (`int`): how many.
    """
    folder.mkdir(exist_ok=True)
    here = environment_of(processes, free_port())
    code = BEGIN + script + END
    running = [
        Started(
            code, str(folder), *arguments, folder=folder, name=f"said-{rank}.txt", path=[os.getcwd()],
            environment=here | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]  # fmt: skip
    ended = [process.wait(240) for process in running]
    assert not any(ended), [process.said[-10_000:] for process in running]


def launch(folder: Path, script: str, *arguments: str, processes: int = 2) -> None:
    """The same, by `accelerate launch`, as users have it."""
    folder.mkdir(exist_ok=True)
    file = folder / "script.py"
    file.write_text(BEGIN + script + END)
    # `--multi_gpu` is how it starts several processes; that there is no GPU the environment says
    options = [
        "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--main_process_port", str(free_port()),
    ]  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(file), str(folder), *arguments]
    done = subprocess.run(
        command, env=_environment() | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-10_000:]


def environment_of(processes: int, port: int) -> dict[str, str]:
    """Variables of all of so many processes, but their ranks."""
    return _environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}


def _environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
