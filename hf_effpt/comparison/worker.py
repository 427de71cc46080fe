"""One run of a comparison, in a process of its own: `python -m hf_effpt.comparison.worker REQUEST.json`."""

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

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.evaluation.suite import evaluate
from hf_effpt.pretraining import pretrain
from hf_effpt.training.checkpoints import checkpoints_in, fault
from hf_effpt.training.recipe import Recipe

from .grid import RECORD, SCORES

BUSY = 4  # the exit code where another process has the run


def end_with(parent: int, seconds: float = 1.0) -> None:
    """Ends this process when the comparison that started it is gone, out of the way of the next one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def last_whole_checkpoint(folder: Path) -> str | None:
    """The checkpoint that a killed run goes on from; where there is none, what it has left is removed."""
    whole = [checkpoint for checkpoint in checkpoints_in(folder) if fault(checkpoint) is None]
    if whole and (folder / "recipe.yaml").is_file():
        return str(whole[-1])
    shutil.rmtree(folder, ignore_errors=True)
    return None


def run(request: Mapping[str, Any]) -> None:
    """Trains what is not trained yet, removes the checkpoints, and evaluates what is not evaluated yet.

    Args:
        request (`Mapping[str, Any]`): `recipe`, the sections of the run; `evaluation`, the arguments of [`evaluate`],
            if any.

    Raises:
        Timeout: if another process is at work on the same run.
    """
    recipe = Recipe.load(request["recipe"])
    folder = Path(recipe.training.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
        if not (folder / RECORD).is_file():
            pretrain(recipe, resume=last_whole_checkpoint(folder) or False)
        for checkpoint in checkpoints_in(folder):  # a finished run is its exported model and its record
            shutil.rmtree(checkpoint)
        if request["evaluation"]:
            found = evaluate(folder, **request["evaluation"])
            write_json(folder / SCORES, {"asked": request["evaluation"], **found})


def main() -> int:
    """Runs the request in the file that the command line names; bad input is one line and exit code 2."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("hf_effpt").setLevel(logging.INFO)
    try:
        request = read_json(Path(sys.argv[1]))
        end_with(request["parent"])
        run(request)
    except Timeout:
        return BUSY
    except EffptError as error:
        print(f"effpt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
