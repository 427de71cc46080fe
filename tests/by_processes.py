"""Runs every method in 1, 2 and 4 processes on the same global batch, and says what of the results is equal.

    python -m tests.by_processes --out model_cards/results/processes.json

Four processes are two machines as `torchrun` has them: two agents, of two processes each, that meet at a port.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from tests import tiny
from tests.contract.settings import SETTINGS, VARIANTS
from tests.together import free_port

GLOBAL_BATCH = 8
CASES: dict[str, dict] = {"none": {}} | {name: {name: settings} for name, settings in SETTINGS.items()} | VARIANTS
# On rows of different lengths, which each process pads to its longest: tokens are not those of one process.
PADDED = {"padded rows, tokens": "1500tokens", "padded rows, FLOPs": "3e8flops"}
RUN = {"budget": "8steps", "optim": "sgd", "learning_rate": 0.1, "logging_steps": 100}


def rows_of_lengths() -> Dataset:
    """Rows of 6 to 29 tokens that are not packed."""
    generator = np.random.default_rng(0)
    words = [
        (5 + int(start) + np.arange(size)) % 120 + 5 for start, size in generator.integers([0, 4], [120, 28], (48, 2))
    ]
    return Dataset.from_dict({"input_ids": [[2, *map(int, row), 3] for row in words]})


def trained(name: str, out: Path) -> dict[str, Any]:
    """Trains a case, in this process and however many others there are; returns what it came to in this one."""
    size = GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1"))
    given = RUN | {"per_device_train_batch_size": size, "budget": PADDED.get(name, RUN["budget"])}
    trainer = tiny.trainer(out / "runs" / name, CASES.get(name), **given)
    if name in PADDED:
        trainer = tiny.EffptTrainer(
            tiny.model(), trainer.args, train_dataset=rows_of_lengths(), processing_class=tiny.tokenizer()
        )
        trainer.cost.counter = tiny.default_counter()
    trainer.train()
    # Notes and queues of methods are buffers.
    state = {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}
    digest = hashlib.sha256()
    for key, value in state.items():
        digest.update(key.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    clock = trainer.clock
    counts = [clock.steps, clock.tokens, clock.flops, trainer.stream.rows_seen]
    return {"state": state, "hash": digest.hexdigest(), "events": trainer.model.config.events, "counts": counts}


def launch(names: Iterable[str], out: Path, machines: int, each: int) -> None:
    """Trains cases by `torchrun` on so many machines, all of them this one, with so many processes each."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(machines), "--nproc-per-node", str(each)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    script = ["-m", "tests.by_processes", "--out", str(out), "--cases", *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    agents = [
        subprocess.Popen(
            [*command, "--node-rank", str(place), *script], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for place in range(machines)
    ]  # fmt: skip
    said = [agent.communicate(timeout=600)[0] for agent in agents]
    if any(agent.returncode for agent in agents):
        raise RuntimeError("\n".join(text[-10_000:] for text in said))


def compared(straight: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Says what a run in many processes has in common with that in one, and the processes with each other."""
    first, gaps = found[0], []
    for key, value in first["state"].items():
        other = straight["state"][key]
        # The queues of a selection hold rows in the order of the processes.
        if value.is_floating_point() and value.numel() and ".selector." not in key:
            gaps.append((value - other).abs().max().item() if value.shape == other.shape else float("inf"))
    return {
        "processes_equal": len({one["hash"] for one in found}) == 1,
        "counts_equal": all(one["counts"] == first["counts"] for one in found),
        "counts_of_one": first["counts"] == straight["counts"],
        "events_of_one": first["events"] == straight["events"],
        "largest_difference": max(gaps),
    }


def saved(name: str, out: Path, processes: int) -> list[dict[str, Any]]:
    return [torch.load(out / f"{name}-{rank}.pt") for rank in range(processes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; with cases the folder of their results")
    parser.add_argument("--cases", nargs="+", help="train these in this process")
    args = parser.parse_args()
    if args.cases:
        torch.set_num_threads(1)
        rank = os.environ.get("RANK", "0")
        for name in args.cases:
            torch.save(trained(name, args.out), args.out / f"{name}-{rank}.pt")
        torch.distributed.barrier()
        os._exit(0)  # taking a process group down now and then waits for others
    results: dict[str, dict] = {name: {} for name in CASES}
    with TemporaryDirectory() as folder:
        for number in (1, 2, 4):
            launch(CASES, Path(folder, str(number)), machines=2 if number == 4 else 1, each=min(number, 2))
        for name in CASES:
            (straight,) = saved(name, Path(folder, "1"), 1)
            for number in (2, 4):
                results[name][str(number)] = compared(straight, saved(name, Path(folder, str(number)), number))
    command = "python -m tests.by_processes --out model_cards/results/processes.json"
    facts = {"command": command, "global_batch": GLOBAL_BATCH, "run": RUN, "torch": torch.__version__}
    args.out.write_text(json.dumps(facts | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
