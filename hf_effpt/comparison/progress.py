"""Progress of a comparison: the time that its runs take, and a line on a terminal while they go on."""

import os
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from hf_effpt.hub.card import duration

from .run_grid import Run

TAIL = 4096  # bytes at the end of a run's log, in which its progress bar stands
IN_SECONDS = ("seconds", "reference_seconds")
_BAR = re.compile(rb"training for [^\r\n|]*?(\d+)%\|")


class Progress:
    """Progress of `runs`, of which some are `done`; `at_once` go on at the same time.

    A run on a budget in time takes that time; another as long as finished ones have taken for as much. Only training
    counts: starting, evaluating and saving come on top.
    """

    def __init__(self, runs: Sequence[Run], done: Collection[Run], at_once: int) -> None:
        self.numbers = {run: number for number, run in enumerate(runs, start=1)}
        self.waiting = [run for run in runs if run not in done]
        self.at_once = at_once
        self._trained = {run for run in self.waiting if run.record() is not None}  # and only to be evaluated
        self._began: dict[Run, float] = {}
        self._paces: dict[str, float] = {}  # seconds for each unit of the budget, by arm
        for run in done:
            self._learn(run)
        self._line = tqdm(bar_format="{desc}", disable=None, leave=False)  # only on a terminal

    @property
    def is_shown(self) -> bool:
        return not self._line.disable

    def announcement(self) -> str:
        """Says how many runs there are, and how long they take."""
        number, left = len(self.waiting), self.left()
        finished = len(self.numbers) - number
        before = f"{finished} of {len(self.numbers)} runs are finished already. " if finished else ""
        if not number:
            return before.strip()
        takes = "how long they take is known after the first" if left is None else f"{left} of training"
        once = "one after another" if self.at_once == 1 else f"{self.at_once} at a time"
        return f"{before}{number} run{'' if number == 1 else 's'} to make, {once}: {takes}."

    def began(self, run: Run) -> None:
        self._began[run] = time.monotonic()

    def ended(self, run: Run) -> None:
        """Notes a run that is done or has failed, and takes the line away until the next [`show`]."""
        self._began.pop(run, None)
        if run in self.waiting:
            self.waiting.remove(run)
        self._learn(run)
        self._line.clear()

    def show(self) -> None:
        """Shows the runs that go on, the share of the clock that each has spent, and the time left."""
        parts = []
        for run, began in list(self._began.items()):
            share = share_of_clock(run.log)
            spent = f"for {duration(time.monotonic() - began)}" if share is None else f"{share:.0%} of its clock"
            parts.append(f"run {self.numbers[run]} of {len(self.numbers)} ({run.arm}, seed {run.seed}) {spent}")
        if (left := self.left()) is not None:
            parts.append(f"{left} left")
        self._line.set_description_str(", ".join(parts))

    def close(self) -> None:
        self._line.close()

    def left(self) -> str | None:
        """Time that the runs to make take, for people; `None` if it is unknown."""
        seconds = 0.0
        for run in self.waiting:
            if (takes := self._seconds(run)) is None:
                return None
            seconds += takes * (1 - ((share_of_clock(run.log) or 0.0) if run in self._began else 0.0))
        return f"about {duration(seconds / self.at_once)}"

    def _seconds(self, run: Run) -> float | None:
        clock = run.recipe.training.clock
        if run in self._trained:
            return 0.0
        if clock is None:
            return None
        if clock.unit in IN_SECONDS:
            return clock.budget
        known = self._paces.get(run.arm) or (sum(self._paces.values()) / len(self._paces) if self._paces else None)
        return None if known is None else known * clock.budget

    def _learn(self, run: Run) -> None:
        clock, record = run.recipe.training.clock, run.record()
        if clock is not None and record is not None:
            self._paces[run.arm] = record["clock"]["seconds"] / clock.budget


def share_of_clock(log: Path) -> float | None:
    """Share of its budget that a run has spent, by the progress bar in its log; `None` if there is none yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            found = _BAR.findall(file.read())
    except OSError:
        return None
    return int(found[-1]) / 100 if found else None
