"""What a comparison says of its time."""

import json

import pytest

from hf_effpt.comparison.arms import Arm
from hf_effpt.comparison.progress import Progress, share_of_clock
from hf_effpt.comparison.run_grid import grid
from hf_effpt.core.clock import Clock

SECTIONS = {"model": {"size": "tiny"}, "data": {"dataset": "corpus/"}}
BAR = "training for 90 seconds:   4%|    | 00:03<01:20\rtraining for 90 seconds:  50%|##  | 00:45<00:45, loss=6.1\r"


@pytest.fixture
def runs(tmp_path):
    def make(budget, fractions=(0.5, 1.0)):
        return grid([Arm("a", SECTIONS), Arm("b", SECTIONS)], Clock.parse(budget), (0,), fractions, tmp_path / "out")

    return make


def finish(run, seconds):
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps({"clock": {"seconds": seconds}}))


def test_runs_on_a_budget_in_time_are_known_before_the_first(runs):
    planned = runs("60s")
    progress = Progress(planned, [], 1)
    assert progress.announcement() == "4 runs to make, one after another: about 3 min 0 s of training."
    assert Progress(planned, [], 2).announcement() == "4 runs to make, 2 at a time: about 1 min 30 s of training."
    assert not progress.is_shown  # since nobody looks at a terminal
    progress.began(planned[0])
    planned[0].log.parent.mkdir(parents=True)
    planned[0].log.write_text(BAR)
    assert progress.left() == "about 2 min 45 s"
    progress.ended(planned[0])
    assert progress.left() == "about 2 min 30 s"


def test_other_budgets_are_known_by_finished_runs(runs):
    planned = runs("100steps")
    progress = Progress(planned, [], 1)
    assert progress.announcement().endswith("how long they take is known after the first.")
    finish(planned[0], 25.0)  # 50 steps
    progress.ended(planned[0])
    assert progress.left() == "about 2 min 5 s"  # 50 and twice 100 steps
    again = Progress(planned, planned[:1], 1)
    assert again.announcement().startswith("1 of 4 runs are finished already. 3 runs to make")
    assert Progress(planned, planned, 1).announcement() == "4 of 4 runs are finished already."


def test_the_line_of_a_run_has_its_share_of_the_clock(runs, monkeypatch):
    planned, shown = runs("60s"), []
    progress = Progress(planned, [], 1)
    monkeypatch.setattr(progress._line, "set_description_str", shown.append)
    progress.began(planned[1])
    progress.show()
    planned[1].log.parent.mkdir(parents=True)
    planned[1].log.write_text(BAR)
    progress.show()
    assert shown[0].startswith("run 2 of 4 (b, seed 0) for 0.0 s, about 3 min 0 s left")
    assert shown[1] == "run 2 of 4 (b, seed 0) 50% of its clock, about 2 min 45 s left"


def test_a_log_without_a_bar_has_no_share(tmp_path):
    assert share_of_clock(tmp_path / "none.log") is None
    (tmp_path / "log").write_text("Packing corpus: 40%|\n")
    assert share_of_clock(tmp_path / "log") is None
