"""Invariant 9: two processes give the steps of one process with the same global batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import gc, json, sys
import torch
torch.set_num_threads(1)
from tests import tiny
out, methods, rows, objective = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
trainer = tiny.trainer(out, methods, objective=objective, per_device_train_batch_size=rows,
                       gradient_accumulation_steps=2, save_strategy="steps", save_steps=5, optim="sgd",
                       learning_rate=0.3)
trainer.train()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    torch.save({"weights": tiny.weights(trainer.model), "tokens": trainer.clock.tokens, "flops": trainer.clock.flops,
                "loss": metrics["eval_loss"], "masked": trainer.evaluation["masked_tokens"],
                "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
                "events": trainer.model.config.events}, out + "/result.pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
del trainer  # what it holds of the process group must not live to the end of the interpreter, where gloo aborts
gc.collect()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(out, methods, processes, rows, objective):
    out.mkdir()
    script = out / "script.py"
    script.write_text(SCRIPT)
    # `--multi_gpu` is how accelerate starts several processes; without a GPU they talk through gloo
    several = (
        ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--cpu", "--num_processes", "1"]
    )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *several,
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(free_port()),
        "--num_cpu_threads_per_process",
        "1",
        str(script),
        str(out),
        json.dumps(methods),
        str(rows),
        objective,
    ]
    env = os.environ | {"PYTHONPATH": os.getcwd(), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "result.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "methods"),
    [
        ("mlm", {}),
        ("mlm", {"layerdrop": {"p": 0.5}}),
        ("mlm", {"stacking": {"depth": 1, "at": [0.3, 0.7]}}),
        ("electra", {"tnf": {"k": 2, "min_count": 5, "max_count": 7}}),
        ("mcbert", {}),
    ],
    ids=["mlm", "layerdrop", "stacking", "electra with notes", "mcbert"],
)
def test_two_processes_equal_one(tmp_path, objective, methods):
    """Not even what generators sample depends on how many processes there are."""
    one = launch(tmp_path / "one", methods, 1, 4, objective)
    two = launch(tmp_path / "two", methods, 2, 2, objective)
    assert two["tokens"] == one["tokens"]
    assert two["flops"] == one["flops"]
    assert two["masked"] == one["masked"]
    assert two["events"] == one["events"]
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, two["weights"][name], atol=5e-6), name
    assert (tmp_path / "two" / "checkpoint-5" / "rng_state_1.pth").is_file()
