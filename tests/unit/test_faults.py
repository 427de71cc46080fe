"""A few of the faults that `tests/by_faults.py` injects by the hundred, most of them in this process."""

import contextlib
import random
import shutil

import pytest

from hf_effpt.hub.folders import checkpoints_in
from hf_effpt.training.trainer import EffptTrainer
from tests.faults import child, damages, disks, kills
from tests.faults.runs import EVERY, World, counts, difference, followed, not_one_line


class Here(World):
    """Runs that nothing kills are in this process, which takes less time."""

    def launch(self, out, *flags, die_at=0):
        if die_at:
            return super().launch(out, *flags, die_at=die_at)
        beside, self.said = out.parents[1], ""
        words = ["pretrain", str(beside / "recipe.json"), *flags]
        with pytest.MonkeyPatch.context() as patch, open(beside / "said.txt", "w") as file:
            patch.setattr(child.sys, "addaudithook", lambda hook: None)
            patch.setattr(EffptTrainer, "__init__", EffptTrainer.__init__)
            patch.setenv("HF_EFFPT_CACHE", self.environment["HF_EFFPT_CACHE"])
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                self.code = child.run(str(beside / "progress"), str(out), 0, words)
        self.said = (beside / "said.txt").read_text()
        return self

    def wait(self):
        return self.code


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return Here(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(world):
    """A run folder without its later checkpoints and its export."""
    world.launch(out := world.new())
    for later in checkpoints_in(out)[2:]:
        shutil.rmtree(later)
    for exported in ("run.json", "model.safetensors", "config.json"):
        (out / exported).unlink()
    return out


def test_a_run_killed_while_it_writes_goes_on(world, monkeypatch):
    monkeypatch.setattr(world, "writes", 40)
    (outcome,) = kills.while_writing(world, random.Random(1), 1)
    assert outcome.failure is None
    assert 0 <= outcome.lost <= EVERY


@pytest.mark.parametrize("harm", [damages.reshape, damages.without_manifest(damages.truncate)])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(world, whole, harm):
    shutil.copytree(whole, out := world.new())
    harm(out / f"checkpoint-{2 * EVERY}" / "config.json", random.Random(0))
    outcome = world.go_on(out, "", 2 * EVERY)
    assert (outcome.failure, outcome.lost) == (None, EVERY)
    assert "`config.json`" in outcome.said[0]


def test_a_run_on_a_full_disk_goes_on_once_there_is_space(world, whole):
    most = disks.needed(whole)
    out = world.new()
    try:
        with disks.disk(out.parent, most):
            outcome = disks.on_disk(world, out, most, 3 * most)
    except PermissionError:
        pytest.skip("only root may mount a disk")
    assert (outcome.failure, outcome.lost) == (None, EVERY)


def test_a_wrong_end_is_a_failure(world, whole, tmp_path):
    shutil.copytree(whole, out := world.new())
    world.launch(out, "--resume")
    assert difference(out, world.expected) is None
    (out / ".left").mkdir()
    assert difference(out, world.expected) == "leaves .left"
    assert "other losses" in difference(out, world.expected | {"losses": []})
    assert not_one_line("Traceback (most recent call last):\nValueError: no\n", 1) == "exit code 1: ValueError: no"
    assert not_one_line("effpt: no\n", 2) is None
    assert followed("effpt: That cannot be.", tmp_path) is None
    failed = counts([damages.Outcome("a"), damages.Outcome("b", lost=3, failure="no")], 1.0)
    assert (failed["injected"], failed["survived"], failed["steps_lost"]) == (2, 1, {"mean": 1.5, "max": 3})
    assert failed["failures"] == [{"fault": "b", "failure": "no"}]
