"""A run that goes on from an earlier checkpoint has nothing in its folder that was saved after it."""

import json
import logging

from hf_effpt.hub.folders import checkpoints_in
from hf_effpt.training.checkpoints import fault
from hf_effpt.training.rewinding import set_later_aside
from tests import tiny

SMALL = {"layers": 1, "budget": "6steps"}
STABLE = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 0.25}}


def names(folder):
    return [one.name for one in checkpoints_in(folder)]


def test_another_resumption_goes_on_in_the_same_history(tmp_path, caplog):
    """Even if the process is killed before it has saved a checkpoint of its own."""
    tiny.trainer(tmp_path, saved=[2, 4, 6], **SMALL).train()
    before = (tmp_path / "checkpoint-4" / "model.safetensors").read_bytes()
    killed = tiny.trainer(tmp_path, learning_rate=5e-2, **SMALL)
    killed.add_callback(tiny.StopAfter(5))
    with caplog.at_level(logging.WARNING):
        killed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    aside = tmp_path / "abandoned-after-2"
    assert f"(checkpoint-4, checkpoint-6) is no longer of it, and is now in {aside};" in caplog.text
    assert (names(tmp_path), names(aside)) == (["checkpoint-2"], ["checkpoint-4", "checkpoint-6"])
    assert (aside / "checkpoint-4" / "model.safetensors").read_bytes() == before
    again = tiny.trainer(tmp_path, learning_rate=5e-2, saved=[3, 4], **SMALL)
    again.train(resume_from_checkpoint=True)
    straight = tiny.trainer(tmp_path / "straight", learning_rate=5e-2, **SMALL)
    straight.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    tiny.assert_same_weights(straight.model, again.model)
    once_more = tiny.trainer(tmp_path, saved=[3], **SMALL)
    once_more.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert names(tmp_path / "abandoned-after-3") == ["checkpoint-4"]
    assert fault(aside / "checkpoint-6") is None
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_nothing_moves_where_nothing_is_later(tmp_path, caplog):
    tiny.trainer(tmp_path, saved=[2, 4], **SMALL).train()
    tiny.trainer(tmp_path, **SMALL).train(resume_from_checkpoint=True)
    finished = tiny.trainer(tmp_path, layers=1, budget="2steps")  # nothing of it is trained anew
    with caplog.at_level(logging.WARNING):
        finished.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "checkpoint-2 has spent the whole budget of 2 steps, so nothing is trained" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_branches_that_left_later_are_trained_anew(tmp_path):
    """One is trained already, of one the start is there; another left before, and stays."""
    run = tiny.trainer(tmp_path, layers=1, budget="16steps", branches=[0.25, 0.5, 0.75], warmup_steps=0.0, **STABLE)
    run.add_callback(tiny.SaveAt([4]))
    run.train()
    starts = {share: names(run.branches.folder(share)) for share in run.branches.shares}
    assert starts == {0.25: ["checkpoint-3"], 0.5: ["checkpoint-6"], 0.75: ["checkpoint-9"]}
    trained = run.branches.folder(0.75)
    (trained / "run.json").write_text(json.dumps({"branch": {"steps": 9}}))
    run.clock.steps = 4
    for _ in range(2):  # the second time there is nothing left
        set_later_aside(run, str(tmp_path / "checkpoint-4"))
    aside = tmp_path / "abandoned-after-4"
    assert names(run.branches.folder(0.25)) == ["checkpoint-3"]
    assert not names(run.branches.folder(0.5))
    assert not trained.exists()
    assert names(aside / "branch-0.5") == ["checkpoint-6"]
    assert (aside / "branch-0.75" / "run.json").is_file()
    (tmp_path / "checkpoint-5").mkdir()
    set_later_aside(run, str(tmp_path / "checkpoint-4"))
    assert names(tmp_path / "abandoned-after-4-2") == ["checkpoint-5"]
