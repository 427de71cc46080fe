"""Processes that train together, for tests: each runs the same script and finds the others as `torchrun` would say."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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


def together(folder: Path, script: str, *arguments: str, processes: int = 2, launched: bool = False) -> None:
    """Runs a script in so many processes at once, which talk through gloo, and waits for them.

    Args:
        folder (`Path`): where the script is put, and what it writes to.
        script (`str`): which finds `folder` and the arguments in `sys.argv`.
        processes (`int`): how many.
        launched (`bool`): whether `accelerate launch` starts them, as users have it.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "script.py"
    file.write_text(BEGIN + script + END)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(file), str(folder), *arguments]
    here = os.environ | {"PYTHONPATH": os.getcwd(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if launched:  # `--multi_gpu` is how it starts several processes; that there is no GPU the environment says
        options = [
            "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--main_process_port", str(port),
        ]  # fmt: skip
        command[1:1] = ["-m", "accelerate.commands.launch", *options]
    ranks = [None] if launched else range(processes)
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    said, running = [], []
    for rank in ranks:
        env = here if rank is None else here | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        said.append(folder / f"said-{rank}.txt")
        with said[-1].open("w") as output:
            running.append(subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT))
    try:
        ended = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert not any(ended), [saying.read_text()[-10_000:] for saying in said]
