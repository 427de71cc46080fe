"""A process that runs `effpt`, notes its steps and writes in a file, and dies before the write it is told to."""

import gc
import os
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_effpt.cli.main import main
from hf_effpt.training.trainer import EffptTrainer

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
LAYOUT = "=qqq"


@dataclass
class Progress:
    """Progress of a process, which a kill leaves as it was.

    Args:
        steps (`int`): of the run, done so far, those of earlier processes included.
        since (`int`): the steps that were done when this process began to train; -1 if it has not.
        writes (`int`): files opened for writing, renamed and removed in the run folder, since the first step of all.
    """

    steps: int = 0
    since: int = -1
    writes: int = 0

    @classmethod
    def read(cls, path: Path) -> "Progress":
        data = path.read_bytes() if path.exists() else b""
        return cls(*struct.unpack(LAYOUT, data)) if data else cls()


class Noting(TrainerCallback):
    """Notes progress in the open file `file`, and kills its process before the write `die_at`."""

    def __init__(self, file: int, folder: str, die_at: int) -> None:
        self.file, self.folder, self.die_at, self.progress = file, folder, die_at, Progress()

    def note(self) -> None:
        os.pwrite(self.file, struct.pack(LAYOUT, *vars(self.progress).values()), 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress.since < 0:
            self.progress.since = state.global_step - 1
        self.progress.steps = state.global_step
        self.note()

    def audit(self, event: str, arguments: tuple) -> None:
        """Hook of Python's audit events ([`sys.addaudithook`])."""
        writes = event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not writes or self.progress.steps == 0 or not str(arguments[0]).startswith(self.folder):
            return
        self.progress.writes += 1
        self.note()
        if self.progress.writes == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(note: str, folder: str, die_at: int, words: list[str]) -> int:
    """Runs `effpt` with `words`, whose run folder is `folder`; returns its exit code."""
    gc.freeze()  # what was imported, so that collections take no time
    noting = Noting(os.open(note, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), folder, die_at)
    begin = EffptTrainer.__init__

    def with_notes(trainer: Any, *args: Any, **kwargs: Any) -> None:
        begin(trainer, *args, **kwargs)
        trainer.add_callback(noting)

    EffptTrainer.__init__ = with_notes
    sys.addaudithook(noting.audit)
    return main(words)
