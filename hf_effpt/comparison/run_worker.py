"""Process of one run of a comparison: `python -m hf_effpt.comparison.run_worker REQUEST.json`."""

import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_effpt.core.errors import EffptError, RunDiverged, RunStopped
from hf_effpt.core.files import read_json, write_json
from hf_effpt.evaluation.suite import evaluate
from hf_effpt.hub.folders import DIVERGED
from hf_effpt.pretraining import pretrain
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.checkpoints import checkpoints_in, fault

from .run_grid import RECORD, SCORES

BUSY = 4  # exit code if another process is at work on the run


def end_with(parent: int, seconds: float = 1.0) -> None:
    """Ends this process when its parent process has ended, so that it does not compete with a new comparison."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def last_whole_checkpoint(folder: Path) -> str | None:
    """Returns the newest intact checkpoint of a killed run; removes others after it, or the folder if it has none."""
    for checkpoint in reversed(checkpoints_in(folder)) if (folder / "recipe.yaml").is_file() else ():
        if fault(checkpoint) is None:
            return str(checkpoint)
        shutil.rmtree(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def run(request: Mapping[str, Any]) -> None:
    """Trains a run unless it is trained, removes its checkpoints, and evaluates it unless it diverged.

    A run that diverges has an outcome, too: it leaves a record of that, and is not tried again.
    `request` has the sections of its `recipe`, and as `evaluation` the arguments of [`evaluate`] or an empty mapping.
    Raises a `Timeout` if another process is at work on the same run.
    """
    recipe = Recipe.load(request["recipe"])
    folder = Path(recipe.training.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
        if not (folder / RECORD).is_file():
            try:
                pretrain(recipe, resume=last_whole_checkpoint(folder) or False)
            except RunDiverged as diverged:
                logging.getLogger("hf_effpt").warning("%s", diverged)
                write_json(folder / DIVERGED, {"message": str(diverged), **diverged.record})
        for checkpoint in checkpoints_in(folder):  # a finished run needs only its exported model and its record
            shutil.rmtree(checkpoint)
        if request["evaluation"] and not (folder / DIVERGED).is_file():
            found = evaluate(folder, **request["evaluation"])
            write_json(folder / SCORES, {"asked": request["evaluation"], **found})


def main() -> int:
    """Runs the request in the file named on the command line; an [`EffptError`] is one line and exit code 2."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("hf_effpt").setLevel(logging.INFO)
    try:
        request = read_json(Path(sys.argv[1]))
        end_with(request["parent"])
        run(request)
    except Timeout:
        return BUSY
    except RunStopped as stop:
        print(f"effpt: {stop}", file=sys.stderr)
        return stop.exit_code
    except EffptError as error:
        print(f"effpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
