"""Makes the runs of a comparison: each in a process of its own, one at a time or one on each GPU."""

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

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import write_json
from hf_effpt.hub.card import duration

from .grid import Run
from .worker import BUSY

logger = logging.getLogger(__name__)


class Runner:
    """Makes the runs that are not done yet.

    Args:
        evaluation (`Mapping[str, Any]`): arguments of [`evaluate`] for runs on the whole budget; empty for none.
        gpus (`Sequence[str]`, *optional*): numbers of the GPUs that each take one run at a time. By default one run at
            a time, on what the Trainer chooses.
    """

    def __init__(self, evaluation: Mapping[str, Any], gpus: Sequence[str] = ()) -> None:
        self.evaluation, self.gpus = dict(evaluation), list(gpus)
        self._processes: set[subprocess.Popen] = set()
        self._lock, self._stopping = threading.Lock(), False

    def make(self, runs: Sequence[Run]) -> dict[Run, str]:
        """Makes the runs in order and returns those that failed, each with the last line it printed.

        A failed run does not stop the others. An interruption ends the processes; finished runs, and checkpoints of
        those under way, stay.
        """
        failed: dict[Run, str] = {}
        waiting = [(number, run) for number, run in enumerate(runs, start=1) if not self.is_done(run)]
        if len(waiting) < len(runs):
            logger.info("%d of %d runs are finished already", len(runs) - len(waiting), len(runs))
        free: queue.Queue[str | None] = queue.Queue()
        for gpu in self.gpus or [None]:
            free.put(gpu)

        def one(number: int, run: Run) -> None:
            gpu = free.get()
            try:
                if self.is_done(run):  # by another process that makes the same comparison
                    return
                if not self._stopping and (fault := self._run(run, gpu)):
                    failed[run] = fault
                if not self._stopping:
                    logger.info("[%d/%d] %s: %s", number, len(runs), _name(run), failed.get(run) or _outcome(run))
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
        return failed

    def command(self, run: Run, request: Path) -> list[str]:
        """The command of a run's process, which finds what it is to do in the file `request`."""
        return [sys.executable, "-m", "hf_effpt.comparison.worker", str(request)]

    def is_done(self, run: Run) -> bool:
        """Whether a run is trained and, where it is to be, evaluated as asked."""
        if run.record() is None:
            return False
        wanted = self.evaluation_of(run)
        scores = run.scores() if wanted else None
        return not wanted or (scores is not None and scores.get("asked") == _asked(wanted))

    def evaluation_of(self, run: Run) -> dict[str, Any]:
        """The arguments of [`evaluate`] for a run; empty where it is not to be evaluated."""
        if run.fraction != 1.0 or not self.evaluation or run.has_diverged():
            return {}
        return self.evaluation | {"seeds": [run.seed]}

    def _run(self, run: Run, gpu: str | None) -> str | None:
        """Runs the worker; what it printed last, if it failed."""
        request = {"recipe": run.recipe.resolved(), "evaluation": self.evaluation_of(run), "parent": os.getpid()}
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        asked = run.folder.with_name(f"{run.folder.name}.{os.getpid()}.request.json")
        write_json(asked, request)
        environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        with run.log.open("ab") as log:
            with self._lock:
                if self._stopping:
                    return None
                command = self.command(run, asked)
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                self._processes.add(process)
            code = process.wait()
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


def _asked(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(evaluation))


def _name(run: Run) -> str:
    share = "" if run.fraction == 1.0 else f", {run.fraction:.0%} of the budget"
    return f"{run.arm}, seed {run.seed}{share}"


def _outcome(run: Run) -> str:
    record = run.record()
    if record is None:
        return "not finished"
    loss, seconds = (record.get("evaluation") or {}).get("held_out_loss"), record["clock"]["seconds"]
    return f"{'no held-out text' if loss is None else f'held-out loss {loss:.4f}'} after {duration(seconds)}"


def gpus_of(text: str | None) -> list[str]:
    """The GPUs that a list such as `0,1,3` names.

    Raises:
        EffptError: if there are no such GPUs.
    """
    if not text:
        return []
    import torch

    gpus = [word.strip() for word in text.split(",")]
    there = torch.cuda.device_count()
    if wrong := [gpu for gpu in gpus if not gpu.isdigit() or int(gpu) >= there]:
        raise EffptError(f"There is no GPU {', '.join(wrong)}: {there} can be seen here, numbered from 0.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [visible.split(",")[int(gpu)].strip() for gpu in gpus] if visible else gpus
