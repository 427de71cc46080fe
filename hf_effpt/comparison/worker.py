"""One run of a comparison, in a process of its own: `python -m hf_effpt.comparison.worker REQUEST.json`."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.suite import evaluate
from hf_effpt.hub.folders import write_json
from hf_effpt.pretrain import pretrain
from hf_effpt.training.checkpoints import checkpoints_in
from hf_effpt.training.recipe import Recipe

from .grid import RECORD, SCORES


class EndWithComparison(TrainerCallback):
    """Stops the run when the comparison that started it is gone, so that it can be started again."""

    def __init__(self) -> None:
        self.parent = os.getppid()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if os.getppid() != self.parent:
            raise EffptError("The comparison that started this run has ended; start it again to go on.")


def run(request: Mapping[str, Any]) -> None:
    """Trains what is not trained yet, removes the checkpoints, and evaluates what is not evaluated yet.

    Args:
        request (`Mapping[str, Any]`): `recipe`, the sections of the run; `resume`, whether it goes on from a
            checkpoint; `evaluation`, the arguments of [`evaluate`], if any.
    """
    recipe = Recipe.load(request["recipe"])
    folder = Path(recipe.training.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            if not (folder / RECORD).is_file():
                pretrain(recipe, resume=request["resume"], callbacks=[EndWithComparison()])
            for checkpoint in checkpoints_in(folder):  # a finished run is its exported model and its record
                shutil.rmtree(checkpoint)
            if request["evaluation"]:
                found = evaluate(folder, **request["evaluation"])
                write_json(folder / SCORES, {"asked": request["evaluation"], **found})
    except Timeout:
        raise EffptError(f"Another process is at work on {folder}; wait for it, or stop it.") from None


def main() -> int:
    """Runs the request in the file that the command line names; bad input is one line and exit code 2."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("hf_effpt").setLevel(logging.INFO)
    try:
        run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except EffptError as error:
        print(f"effpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
