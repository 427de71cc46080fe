"""Executors of datatrove for the stages of a packing: local processes, Slurm or Ray, with the settings of each."""

import inspect
import io
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import yaml
from datasets.utils import tqdm
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

CLUSTERS: dict[str, type[PipelineExecutor]] = {"slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
OWN = frozenset("self pipeline tasks depends logging_dir skip_completed job_id_retriever".split())  # set here


@dataclass(frozen=True)
class Stage:
    """A pipeline of the packing: its name, which is that of its folder of logs, its steps and tasks."""

    name: str
    steps: Sequence[PipelineStep]
    tasks: int


class LocalWorkers(LocalPipelineExecutor):
    """Runs tasks in processes of this machine, or, with one worker, in this one.

    The stock executor waits for ever once a worker was killed, as for want of memory; here that is an `EffptError`.
    Workers end with this process, even if it is killed. What tasks log is in their files only.
    """

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        bar = tqdm(total=self.tasks, initial=self.tasks - len(ranks), desc=self.name, unit="task", disable=None)
        with bar:
            stats = []
            for one in self._done(ranks):
                stats.append(one)
                bar.update()
        with self.logging_dir.open("stats.json", "wt") as file:
            sum(stats, start=PipelineStats()).save_to_disk(file)

    @property
    def name(self) -> str:
        """Name of the stage."""
        return Path(self.logging_dir.path).name

    def _done(self, ranks: list[int]) -> Iterable[PipelineStats]:
        if self.workers == 1 or len(ranks) < 2:
            yield from map(self._run_for_rank, ranks)
            return
        with ProcessPoolExecutor(min(self.workers, len(ranks)), get_context("forkserver"), _end_with_parent) as pool:
            futures = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BrokenProcessPool as error:
                raise EffptError(
                    f"A worker of the stage `{self.name}` was killed, perhaps for want of memory. What is finished is "
                    "kept: run the same command again, with fewer `--workers` if memory is short."
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        with redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)


def _end_with_parent() -> None:
    """Ends this process once its parent is gone, which a pool's worker would outlive."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def options_of(executor: str, words: Sequence[str]) -> dict[str, Any]:
    """Settings of a cluster's executor from words `KEY=VALUE`.

    Raises an `EffptError` for a key that it does not have, and for one that it needs and is not there.
    """
    if executor not in CLUSTERS:
        if words:
            raise EffptError(f"`{' '.join(words)}` are settings of a cluster; name it by --executor slurm or ray.")
        return {}
    known = {
        key: one for key, one in inspect.signature(CLUSTERS[executor].__init__).parameters.items() if key not in OWN
    }
    found: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or key not in known:
            raise EffptError(f"`{word}` is no setting KEY=VALUE of {executor}: {nearest(key, list(known))}")
        # A time such as 20:00:00 is a number in YAML.
        found[key] = value if known[key].annotation in (str, "str") else yaml.safe_load(value)
    if missing := [key for key, one in known.items() if one.default is inspect.Parameter.empty and key not in found]:
        example = " ".join(f"{key}=..." for key in missing)
        raise EffptError(f"{executor} needs the settings {', '.join(missing)}: --executor_options {example}")
    return found


def run_stages(
    stages: Sequence[Stage], logs: Path, executor: str, options: dict[str, Any], workers: int, command: str
) -> bool:
    """Runs stages one after another; `False` if they were only submitted, each to begin when the one before is done.

    Raises an `EffptError` for tasks that have failed.
    """
    ready: list[PipelineExecutor] = []
    for stage in stages:
        settings: dict[str, Any] = {"pipeline": list(stage.steps), "tasks": stage.tasks}
        settings["logging_dir"] = str(logs / stage.name)
        if executor == "local":
            ready.append(LocalWorkers(**settings, workers=workers))
            ready[-1].run()
            continue
        if executor == "slurm" and ready:
            settings["depends"] = ready[-1]
        ready.append(CLUSTERS[executor](**settings, **options))
        if executor == "ray":
            ready[-1].run()
            if failed := ready[-1].get_incomplete_ranks():
                raise EffptError(
                    f"{len(failed)} of {stage.tasks} tasks of the stage `{stage.name}` have failed, the first of them "
                    f"{failed[0]}: see {logs / stage.name / 'logs'}. What is finished is kept; go on with: {command}"
                )
    if executor == "slurm":
        ready[-1].run()
    return executor != "slurm"
