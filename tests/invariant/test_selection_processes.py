"""Spec test 8: with selection, two processes pick each of its own rows, stay in step, and learn as one would."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_effpt.methods.selection import table
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny
from tests.picking import Watched, compared, selection
from tests.picking import trained as holdout_in
from tests.together import together

SETTINGS = {"layers": 2, "optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2, "logging_steps": 100}
SIZE, KEEP, STEPS = 3, 0.6, 7  # so that rows are left over at the checkpoint and at the end
LEARN = {
    "perceptron_ensemble": {"strategy": "perceptron_ensemble"},
    "discriminative": {"strategy": "discriminative", "queue": 20},
    "loss_rank": {"strategy": "loss_rank"},
    "rho": {"strategy": "rho"},
}
RESUMED = ("perceptron_ensemble", "loss_rank")
SCRIPT = """
import json
from tests.invariant.test_selection_processes import run_case

for case in json.loads(sys.argv[2]):
    run_case(sys.argv[1], **case)
"""


class Noting(Watched):
    """Notes the shapes of what it trains on, too."""

    def __init__(self, *args, **kwargs):
        self.shapes = []
        super().__init__(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.shapes.append([list(inputs["input_ids"].shape), int(num_items_in_batch)])
        return super().training_step(model, inputs, num_items_in_batch)


def run_case(folder, name, ledger, resume="", **settings):
    """A run of one of the processes, and what it did, in a file of its own."""
    table.WAITING = 1  # else a run this short would write none of its losses
    given = {**SETTINGS, "per_device_train_batch_size": SIZE, "budget": f"{STEPS}steps", **settings}
    out = Path(folder) / name
    trainer = tiny.trainer(out, ledger, cls=Noting, **given)
    trainer.train(resume_from_checkpoint=str(out / resume) if resume else None)
    found = {
        "weights": tiny.weights(trainer.model), "selector": trainer.model.bert.selector.state_dict(),
        "looked": trainer.looked, "kept": trainer.kept, "kept_in": trainer.kept_in, "shapes": trainer.shapes,
        "clock": trainer.clock.as_dict(), "rows": trainer.stream.rows_seen, "method_flops": trainer.cost.method_flops,
        "carried": None if trainer.stream._carried is None else trainer.stream._carried["example_id"].tolist(),
    }  # fmt: skip
    torch.save(found, f"{folder}/{name}{resume}-{trainer.args.process_index}.pt")
    trainer.accelerator.wait_for_everyone()


@pytest.fixture(scope="module")
def holdout(tmp_path_factory):
    return holdout_in(tmp_path_factory.mktemp("holdout"))


class OfThese(EffptTrainer):
    """Learns from rows that are given, micro-batch after micro-batch."""

    batches: list

    def get_train_dataloader(self):
        self.stream._batches = lambda *args: self.batches
        return super().get_train_dataloader()


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
def test_spec_8_two_processes(tmp_path, holdout, subtests):
    """They learn as one would from what both have picked, and pick each what it would pick alone."""
    saving = {"save_strategy": "steps", "save_steps": 4}
    ledgers = {
        name: selection(keep=KEEP, **given, **compared(given["strategy"], holdout)) for name, given in LEARN.items()
    }
    picking = selection("least_confidence", keep=0.5, explore=0.0, outliers=0.0)
    filled = selection("rho", keep=0.5, holdout=str(holdout), table=str(tmp_path / "table"))
    cases = [{"name": name, "ledger": ledger, **saving} for name, ledger in ledgers.items()]
    cases += [
        {"name": "alone", "ledger": picking, "budget": "1steps"},
        {"name": "table", "ledger": filled, "budget": "2steps"},
    ]
    together(tmp_path / "two", SCRIPT, json.dumps(cases))
    resumed = [{"name": name, "ledger": ledgers[name], "resume": "checkpoint-4", **saving} for name in RESUMED]
    together(tmp_path / "two", SCRIPT, json.dumps(resumed))  # in processes that have seen nothing of the runs before

    def results(name):
        return [torch.load(tmp_path / "two" / f"{name}-{rank}.pt") for rank in range(2)]

    for name in LEARN:
        with subtests.test(name):
            assert_learns_as_one(tmp_path / name, name, *results(name))
    for name in RESUMED:
        with subtests.test(f"{name}, resumed"):
            assert_goes_on(results(name), results(f"{name}checkpoint-4"))
    with subtests.test("alone"):
        assert_picks_as_alone(tmp_path, picking, results("alone"))
    with subtests.test("table"):
        assert_fills(tmp_path / "table", results("table"))


def assert_learns_as_one(out, strategy, first, second):
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
    of_holdout = 8 * 4 * tiny.LENGTH if strategy == "rho" else 0
    assert first["clock"]["tokens"] == 20 * STEPS * tiny.LENGTH + of_holdout
    one = alone(out, (first, second))
    for name, weight in tiny.weights(one.model).items():
        assert torch.allclose(weight, first["weights"][name], atol=1e-5), name


def assert_goes_on(straight, again):
    for rank, (before, after) in enumerate(zip(straight, again, strict=True)):
        assert after["looked"] == before["looked"][4:], rank
        assert after["kept"] == before["kept"][4:], rank
        assert after["rows"] == before["rows"]
        assert after["carried"] == before["carried"]
        assert after["carried"]
        assert after["clock"]["flops"] == before["clock"]["flops"]
        for part in ("weights", "selector"):
            assert all(torch.equal(value, after[part][name]) for name, value in before[part].items()), part


def assert_picks_as_alone(out, ledger, results):
    for rank, result in enumerate(results):
        (looked,), (kept,) = result["looked"], result["kept"]
        settings = {**SETTINGS, "per_device_train_batch_size": SIZE, "budget": "1steps"}
        trainer = tiny.trainer(out / str(rank), ledger, cls=Picking, **settings)
        trainer.batches = [looked]
        trainer.train()
        assert trainer.kept == [kept]


def assert_fills(folder, results):
    assert results[0]["kept"] != results[1]["kept"]
    (file,) = folder.glob("epoch-0-*.npy")
    known = np.flatnonzero(~np.isnan(np.load(file)))
    looked = [row for result in results for rows in result["looked"] for epoch, row in rows if epoch == 0]
    assert sorted(looked) == known.tolist()
