"""Launcher of the runs of a comparison: a process for each run, one at a time or one per GPU."""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from hf_effpt.core.files import write_json
from hf_effpt.core.gpus import names_of_gpus
from hf_effpt.hub.card import duration

from .progress import Progress
from .run_grid import Run, divergence_text
from .run_worker import BUSY

logger = logging.getLogger(__name__)
SECONDS_SHOWN = 2.0  # between two looks at how far a run is


class Runner:
    """Executes the runs that are not done yet.

    `evaluation` are arguments of [`evaluate`] for runs on the whole budget; if empty, runs are not evaluated. Each of
    the `gpus` takes one run at a time; without, there is one at a time, on the device that the Trainer chooses.
    `environment` are environment variables that the processes of the runs have besides those of this one.
    """

    def __init__(
        self, evaluation: Mapping[str, Any], gpus: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.evaluation, self.gpus, self.environment = dict(evaluation), list(gpus), dict(environment or {})
        self._processes: set[subprocess.Popen] = set()
        self._lock, self._stopping = threading.Lock(), False

    def make(self, runs: Sequence[Run]) -> dict[Run, str]:
        """Executes the runs in order and returns the reason of each run that failed.

        A failed run does not stop the others. An interruption ends the processes; finished runs and the checkpoints
        of unfinished ones are kept.
        """
        failed: dict[Run, str] = {}
        waiting = [(number, run) for number, run in enumerate(runs, start=1) if not self.is_done(run)]
        left = {run for _, run in waiting}
        progress = Progress(runs, [run for run in runs if run not in left], max(1, len(self.gpus)))
        logger.info("%s", progress.announcement())
        free: queue.Queue[str | None] = queue.Queue()
        for gpu in self.gpus or [None]:
            free.put(gpu)

        def one(number: int, run: Run) -> None:
            gpu = free.get()
            try:
                if self.is_done(run):  # by another process at work on the same comparison
                    progress.ended(run)
                    return
                if not self._stopping and (fault := self._run(run, gpu, progress)):
                    failed[run] = fault
                progress.ended(run)
                if not self._stopping:
                    share = "" if run.fraction == 1.0 else f", {run.fraction:.0%} of the budget"
                    name, said = f"{run.arm}, seed {run.seed}{share}", failed.get(run) or _outcome(run)
                    left = progress.left() if progress.waiting else None
                    logger.info("[%d/%d] %s: %s%s", number, len(runs), name, said, f"; {left} left" if left else "")
            finally:
                free.put(gpu)

        with ThreadPoolExecutor(max_workers=max(1, len(self.gpus))) as pool:
            try:
                futures = [pool.submit(one, number, run) for number, run in waiting]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._stop()
                raise
            finally:
                progress.close()
        return failed

    def command(self, run: Run, request: Path) -> list[str]:
        """Returns the command of a run's process, which reads its recipe and evaluation from the file `request`."""
        return [sys.executable, "-m", "hf_effpt.comparison.run_worker", str(request)]

    def is_done(self, run: Run) -> bool:
        """Returns `True` if a run is trained and, if requested, evaluated with the arguments of this comparison.

        Or if it has diverged, which another attempt would do again.
        """
        if run.divergence() is not None:
            return True
        if run.record() is None:
            return False
        wanted = json.loads(json.dumps(self.evaluation_of(run)))  # as it was written: tuples are lists
        return not wanted or (run.scores() or {}).get("asked") == wanted

    def evaluation_of(self, run: Run) -> dict[str, Any]:
        """Returns the arguments of [`evaluate`] for a run; empty if it is not to be evaluated."""
        if run.fraction != 1.0 or not self.evaluation or run.has_diverged():
            return {}
        return self.evaluation | {"seeds": [run.seed]}

    def _run(self, run: Run, gpu: str | None, progress: Progress) -> str | None:
        """Runs the worker process and returns the reason if it failed, with its last line of output."""
        request = {"recipe": run.recipe.resolved(), "evaluation": self.evaluation_of(run), "parent": os.getpid()}
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        asked = run.folder.with_name(f"{run.folder.name}.{os.getpid()}.request.json")
        write_json(asked, request)
        environment = os.environ | self.environment | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        with run.log.open("ab") as log:
            with self._lock:
                if self._stopping:
                    return None
                command = self.command(run, asked)
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                self._processes.add(process)
            progress.began(run)
            while (code := _wait(process, SECONDS_SHOWN if progress.is_shown else None)) is None:
                progress.show()
            self._processes.discard(process)
        asked.unlink(missing_ok=True)
        if code == 0 or self._stopping:
            return None
        if code == BUSY:
            return "left to another process that is at work on it; start the comparison again when that is done"
        if code < 0:
            return f"failed (killed by {signal.Signals(-code).name}, as when memory runs out; see {run.log})"
        lines = run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"failed ({lines[-1] if lines else f'exit code {code}'}; see {run.log})"

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in list(self._processes):
                process.terminate()


def _wait(process: subprocess.Popen, seconds: float | None) -> int | None:
    """Exit code of a process; `None` if it has not ended after so many seconds."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _outcome(run: Run) -> str:
    if diverged := run.divergence():
        return f"diverged, {divergence_text(diverged)}"
    record = run.record()
    if record is None:
        return "not finished"
    loss, seconds = (record.get("evaluation") or {}).get("held_out_loss"), record["clock"]["seconds"]
    return f"{'no held-out text' if loss is None else f'held-out loss {loss:.4f}'} after {duration(seconds)}"


def gpus_of(text: str | None) -> list[str]:
    """Parses a list such as `0,1,3`, which counts the visible GPUs; raises an `EffptError` if there is no such GPU."""
    return names_of_gpus([word.strip() for word in text.split(",")]) if text else []
