"""Stops a run that will go on: at SIGTERM or SIGINT, after the step at hand, with a checkpoint to resume from."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from hf_effpt.core.errors import RunStopped
from hf_effpt.core.processes import failing_together, join

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AT_ONCE = 1.0  # seconds in which signals are one: `torchrun` sends them to a process and then to its group


class Stopper:
    """Listens, while the run of `trainer` ([`EffptTrainer`]) trains, for signals that ask it to stop.

    A second signal ends the process at once. Of several processes all stop after the same step, whichever was asked.
    Only the main thread of a process can listen; in another thread signals are left alone.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked: int | None = None  # the signal
        self._since: float | None = None  # time of the first signal
        self._pausing = False
        self.group: Any = None  # of processes, by which they agree without waiting for a device

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context of the training; raises [`RunStopped`] at its end if it was stopped before its budget was spent."""
        self.asked, self._since, self._pausing, before = None, None, False, {}
        self.group = join(self.trainer.args.ddp_timeout)
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}

            def ask(number: int, frame: Any) -> None:
                now = time.monotonic()
                again, self._since = self._since is not None, self._since or now
                doubled = number == signal.SIGTERM or self.group is not None
                if again and doubled and now - self._since < AT_ONCE:
                    return
                self.asked = number
                if again:
                    for each, handler in before.items():
                        signal.signal(each, handler)
                    os.kill(os.getpid(), number)

            for number in SIGNALS:
                signal.signal(number, ask)
        try:
            with failing_together(self.trainer.saver.way_out):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked is not None and not self.trainer.clock.finished:
            step, branch = self.trainer.state.global_step, self.trainer.branches.current
            where = f"{self.trainer.args.output_dir}/checkpoint-{step}"
            saved = f"and is saved in {where}" if branch is None else f"in its branch {branch:g}, which starts anew"
            raise RunStopped(
                f"{signal.Signals(self.asked).name}: the run has stopped after step {step} {saved}; it goes on with "
                "`--resume`, or `train(resume_from_checkpoint=True)`."
            )

    @property
    def paused(self) -> bool:
        """`True` if the run stops, or has stopped, before its budget is spent, and is to go on from there."""
        return (self.asked is not None or self._pausing) and not self.trainer.clock.finished

    def pause(self, control: Any) -> None:
        """Has the run stop after this step; it saves a checkpoint, whatever its strategy of saving."""
        self._pausing = control.should_training_stop = True

    def agreed(self) -> bool:
        """Returns `True` in all processes once one was asked to stop; called by all after each step."""
        if self.group is not None:
            asked = torch.tensor(self.asked or 0)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX, self.group)
            self.asked = int(asked) or None
        return self.asked is not None


class NoEnd(TrainerCallback):
    """Has a run that is paused do nothing of what is due at the end of an epoch, which has not ended."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.stopper.paused:
            control.should_log = control.should_evaluate = control.should_save = False


def ignore_interrupts(worker: int) -> None:
    """Has a process that loads data leave Ctrl-C, which all processes of a terminal get, to the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
