"""Run that goes on from an earlier checkpoint: what it had saved after that is moved aside, since it is undone."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_effpt.core.files import read_json
from hf_effpt.hub.folders import checkpoints_in, step_of

logger = logging.getLogger(__name__)
ASIDE = "abandoned-after-{0}"  # folder in that of the run


def set_later_aside(trainer: Any, checkpoint: str | bool | None) -> None:
    """Moves what the run of `trainer` saved after the step of `checkpoint` into a folder of its own, and says so.

    Else another resumption would take the last checkpoint of before, which knows nothing of the steps trained since.
    Moved are checkpoints, and branches that left the run later. A new run, or a branch, has nothing to move.
    """
    if not checkpoint or trainer.branches.current is not None:
        return
    run, step = Path(trainer.args.output_dir), trainer.clock.steps  # that of the checkpoint
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save and (later := list(_later(run, step))):
        aside = _unused(run / ASIDE.format(step))
        for folder in later:
            target = aside / folder.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
        logger.warning(
            "The run goes on from step %d, so that what it saved later (%s) is no longer of it, and is now in %s; "
            "remove that folder if you do not need it.",
            step, ", ".join(str(folder.relative_to(run)) for folder in later), aside,
        )  # fmt: skip
    trainer.accelerator.wait_for_everyone()


def _later(run: Path, step: int) -> Iterator[Path]:
    """Checkpoints of a run after a step; starting points and models of branches that left it after that step."""
    yield from (one for one in checkpoints_in(run) if step_of(one) > step)
    for branch in sorted(run.glob("branch-*")):
        if (branch / "run.json").is_file():
            left = (read_json(branch / "run.json").get("branch") or {}).get("steps", 0)
            if left > step:
                yield branch
                continue
        yield from (one for one in checkpoints_in(branch) if step_of(one) > step)


def _unused(folder: Path) -> Path:
    """This folder, or the first of `folder-2`, `folder-3`, ... that is not there."""
    number = 1
    while (found := folder if number == 1 else folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return found
