"""Spec test 8: with selection, two processes pick each of its own rows, stay in step, and learn as one would."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_effpt.training.trainer import EffptTrainer
from tests import tiny
from tests.invariant.test_processes import free_port
from tests.picking import Watched, compared, selection, trained

SETTINGS = {"layers": 2, "optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2, "logging_steps": 100}
SIZE, KEEP, STEPS = 3, 0.6, 7  # so that rows are left over at the checkpoint and at the end
SCRIPT = """
import gc, json, os, sys
import torch
torch.set_num_threads(1)
from hf_effpt.methods.selection import table
from hf_effpt.training.stream import BatchStream
from tests import picking, tiny

table.WAITING = 1  # else a run this short would write none of its losses

out, ledger, settings, resume = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
shapes = []

class Noting(picking.Watched):
    def training_step(self, model, inputs, num_items_in_batch=None):
        shapes.append([list(inputs["input_ids"].shape), int(num_items_in_batch)])
        return super().training_step(model, inputs, num_items_in_batch)

trainer = tiny.trainer(out, ledger, cls=Noting, **settings)
trainer.train(resume_from_checkpoint=resume or None)
selector = trainer.model.bert.selector
torch.save({"weights": tiny.weights(trainer.model), "selector": selector.state_dict(), "looked": trainer.looked,
            "kept": trainer.kept, "kept_in": trainer.kept_in, "shapes": shapes,
            "clock": trainer.clock.as_dict(), "rows": trainer.rows_seen,
            "method_flops": trainer.method_flops, "carried": None if trainer._carried is None else
            trainer._carried["example_id"].tolist()}, f"{out}/result-{trainer.args.process_index}{bool(resume)}.pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
del trainer, selector  # as in test_processes
gc.collect()
"""


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("holdout"))


def launch(out, ledger, processes=2, resume="", **settings):
    out.mkdir(exist_ok=True)
    script = out / "script.py"
    script.write_text(SCRIPT)
    given = {**SETTINGS, "per_device_train_batch_size": SIZE, "budget": f"{STEPS}steps", **settings}
    several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
        str(free_port()), "--num_cpu_threads_per_process", "1",
        str(script), str(out), json.dumps(ledger), json.dumps(given), resume,
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": os.getcwd(), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"result-{rank}{bool(resume)}.pt") for rank in range(processes)]


class OfThese(EffptTrainer):
    """Learns from rows that are given, micro-batch after micro-batch."""

    batches: list

    def _stream(self, *args, **kwargs):
        return self.batches


class Picking(Watched, OfThese):
    """Picks from rows that are given."""


def alone(out, results):
    """A plain run of one process on what both have picked."""
    batches = []
    for step in range(STEPS):
        for part in range(2):
            batches.append([])
            for result in results:
                keys = list(zip(result["kept_in"][step], result["kept"][step], strict=True))
                batches[-1] += keys[part * SIZE : (part + 1) * SIZE]
    trainer = tiny.trainer(
        out, None, cls=OfThese, **{**SETTINGS, "per_device_train_batch_size": 2 * SIZE, "budget": f"{STEPS}steps"}
    )
    trainer.batches = batches
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "resumes"),
    [
        ({"strategy": "perceptron_ensemble"}, True),
        ({"strategy": "discriminative", "queue": 20}, False),
        ({"strategy": "loss_rank"}, True),
        ({"strategy": "rho"}, False),
    ],
    ids=["perceptron_ensemble", "discriminative", "loss_rank", "rho"],
)
def test_spec_8_two_processes_learn_as_one_would_from_what_both_have_picked(tmp_path, holdout, given, resumes):
    ledger = selection(keep=KEEP, **given, **compared(given["strategy"], holdout))
    first, second = launch(tmp_path / "two", ledger, save_strategy="steps", save_steps=4)
    assert first["shapes"] == second["shapes"]
    assert [shape for shape, _ in first["shapes"]] == [[SIZE, tiny.LENGTH]] * 2 * STEPS
    assert {items for _, items in first["shapes"]} == {4 * SIZE * 2}
    for name, value in first["selector"].items():
        assert torch.equal(value, second["selector"][name]), name
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    for ours, theirs in zip(first["looked"], second["looked"], strict=True):
        assert len(ours) == len(theirs) == 10
    looked = [row for result in (first, second) for rows in result["looked"] for row in rows]
    assert len(set(looked)) == len(looked)  # none is looked at twice
    assert first["selector"]["counts"].tolist()[::2] == [20 * STEPS, 12 * STEPS]
    of_holdout = 8 * 4 * tiny.LENGTH if given["strategy"] == "rho" else 0
    assert first["clock"]["tokens"] == 20 * STEPS * tiny.LENGTH + of_holdout
    one = alone(tmp_path / "one", (first, second))
    for name, weight in tiny.weights(one.model).items():
        assert torch.allclose(weight, first["weights"][name], atol=1e-5), name

    if not resumes:
        return
    again = launch(tmp_path / "two", ledger, save_strategy="steps", save_steps=4,
                   resume=str(tmp_path / "two" / "checkpoint-4"))  # fmt: skip
    for rank, (before, after) in enumerate(zip((first, second), again, strict=True)):
        assert after["looked"] == before["looked"][4:], rank
        assert after["kept"] == before["kept"][4:], rank
        assert after["rows"] == before["rows"]
        assert after["carried"] == before["carried"]
        assert after["carried"]
        assert after["clock"]["flops"] == before["clock"]["flops"]
        for part in ("weights", "selector"):
            assert all(torch.equal(value, after[part][name]) for name, value in before[part].items()), part


@pytest.mark.slow
def test_spec_8_each_process_picks_what_it_would_pick_alone(tmp_path):
    ledger = selection("least_confidence", keep=0.5, explore=0.0, outliers=0.0)
    two = launch(tmp_path / "two", ledger, budget="1steps")
    for rank, result in enumerate(two):
        (looked,), (kept,) = result["looked"], result["kept"]
        trainer = tiny.trainer(
            tmp_path / str(rank), ledger, cls=Picking,
            **{**SETTINGS, "per_device_train_batch_size": SIZE, "budget": "1steps"},
        )  # fmt: skip
        trainer.batches = [looked]
        trainer.train()
        assert trainer.kept == [kept]


@pytest.mark.slow
def test_one_table_of_losses_is_filled_by_two_processes(tmp_path, holdout):
    ledger = selection("rho", keep=0.5, holdout=str(holdout), table=str(tmp_path / "table"))
    results = launch(tmp_path / "two", ledger, budget="2steps")
    assert results[0]["kept"] != results[1]["kept"]
    (file,) = (tmp_path / "table").glob("epoch-0-*.npy")
    known = np.flatnonzero(~np.isnan(np.load(file)))
    looked = [row for result in results for rows in result["looked"] for epoch, row in rows if epoch == 0]
    assert sorted(looked) == known.tolist()
