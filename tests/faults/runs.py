"""Runs that faults are injected into: how they are started, gone on with as they advise, and compared."""

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_effpt.core.files import write_json
from hf_effpt.hub.folders import checkpoints_in
from hf_effpt.training.checkpoints import fault
from tests.faults.child import Progress
from tests.processes import Started

STEPS, EVERY = 15, 3  # of a run, and between its checkpoints
WORDS = "a the small large model layer token mask learns reads skips grows stacks drops from to of and with text"
CODE = """
import sys, torch
torch.set_num_threads(1)
from tests.faults.child import run
note, folder, die_at, *words = sys.argv[1:]
sys.exit(run(note, folder, int(die_at), words))
"""
ADVICE = 4  # times that what a refusal advises is followed


def settings(corpus: Path, out: Path) -> dict[str, Any]:
    """A recipe whose state is hard to get right: dropout, skipped layers, growth, and averages of weights."""
    return {
        "model": {"size": "tiny", "num_hidden_layers": 4, "hidden_size": 32},
        "data": {"dataset": str(corpus), "sequence_length": 32, "vocab_size": 256, "validation": 0.1},
        "methods": {"stacking": {"at": [0.5]}, "layerdrop": {"p": 0.2}},
        "training": {
            "output_dir": str(out), "budget": f"{STEPS}steps", "per_device_train_batch_size": 4, "logging_steps": 1,
            "save_strategy": "steps", "save_steps": EVERY, "save_total_limit": STEPS, "report_to": "none",
            "disable_tqdm": True, "use_cpu": True,
        },
    }  # fmt: skip


def text(folder: Path) -> Path:
    """A folder with sixty documents of a hundred words."""
    folder.mkdir()
    draw = random.Random(0)
    for number in range(60):
        words = " ".join(draw.choices(WORDS.split(), k=100))
        (folder / f"{number}.txt").write_text(f"{words}.", encoding="utf-8")
    return folder


@dataclass
class Outcome:
    """Result of one fault.

    Args:
        fault (`str`): what was injected.
        said (`list`): the last line of each process from the fault on.
        lost (`int`): steps that were trained again.
        failure (`str`, *optional*): what went wrong; `None` if the fault was survived.
    """

    fault: str
    said: list[str] = field(default_factory=list)
    lost: int = 0
    failure: str | None = None


class World:
    """A text, and runs on it of one recipe, all of which have to end like an undisturbed one.

    Args:
        folder (`Path`): for all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = text(folder / "corpus")
        self.environment = os.environ | {"HF_EFFPT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        self.environment |= {"TOKENIZERS_PARALLELISM": "false"}
        self.number = 0
        self.launch(out := self.new()).wait()  # fills the cache
        self.expected = fingerprint(out)
        self.seconds, self.writes = 0.0, 0

    def measure(self) -> None:
        """Notes how long an undisturbed run takes, and how often it writes; it has to end like the first."""
        begun = time.monotonic()
        undisturbed = self.launch(out := self.new())
        if undisturbed.wait() or difference(out, self.expected):
            raise RuntimeError(undisturbed.said[-10_000:])
        self.seconds = time.monotonic() - begun
        self.writes = self.progress(out).writes

    def new(self) -> Path:
        """A run folder that is not there yet, in a folder of its own beside what else belongs to the run."""
        self.number += 1
        beside = self.folder / f"{self.number}"
        (beside / "disk").mkdir(parents=True)
        write_json(beside / "recipe.json", settings(self.corpus, beside / "disk" / "out"))
        return beside / "disk" / "out"

    def launch(self, out: Path, *flags: str, die_at: int = 0) -> Started:
        """A process of `effpt pretrain` in the run folder `out`, killed before the write `die_at`, if given."""
        beside = out.parents[1]
        words = ["pretrain", str(beside / "recipe.json"), *flags]
        note = beside / "progress"
        note.unlink(missing_ok=True)
        return Started(
            CODE, str(note), str(out), str(die_at), *words,
            folder=beside, environment=self.environment, path=[os.getcwd()],
        )  # fmt: skip

    def progress(self, out: Path) -> Progress:
        """Progress of the last process in the run folder `out`."""
        return Progress.read(out.parents[1] / "progress")

    def go_on(self, out: Path, what: str, done: int, resume: bool = True) -> Outcome:
        """Goes on with a run after a fault, as a user would who does what each refusal says.

        Args:
            out (`Path`): the run folder.
            what (`str`): the fault.
            done (`int`): steps that were done before it.
            resume (`bool`): `False` begins without `--resume`.
        """
        outcome, flags = Outcome(what), ["--resume"] if resume else []
        for _ in range(ADVICE):
            process = self.launch(out, *flags)
            code = process.wait()
            outcome.said.append(told := last_line(process.said))
            if code == 0:
                since = self.progress(out).since
                outcome.lost = max(0, done - since) if since >= 0 else 0
                outcome.failure = difference(out, self.expected)
                return outcome
            outcome.failure = not_one_line(process.said, code)
            if outcome.failure:
                return outcome
            if (flags := followed(told, out)) is None:
                outcome.failure = f"no way on: {told}"
                return outcome
        outcome.failure = f"what each refusal advises leads nowhere: {told}"
        return outcome


def not_one_line(said: str, code: int) -> str | None:
    """Says how a process ended that did not refuse in one line; `None` if it did."""
    told = last_line(said)
    if code in (1, 2) and told.startswith("effpt: ") and "Traceback" not in said:
        return None
    return f"exit code {code}: {told}"


def followed(told: str, out: Path) -> list[str] | None:
    """Does what a refusal says, and returns the flags to go on with; `None` if it says nothing that can be done."""
    if found := re.search(r"`--resume ([^`]+)`", told):
        return ["--resume", found[1]]
    if found := re.search(r"`cp ([^`]+)`", told):
        shutil.copyfile(*shlex.split(found[1]))
        return ["--resume"]
    if re.search(r"start (the run )?without `(--)?resume`", told):
        return []
    if "start anew" in told:
        shutil.rmtree(out)
        return []
    return None


def last_line(said: str) -> str:
    return said.strip().rpartition("\n")[2]


def fingerprint(out: Path) -> dict[str, Any]:
    """Facts of a finished run that have to be equal: bytes of weights, losses, counts and events."""
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    clock = {name: record["clock"][name] for name in ("steps", "tokens", "flops")}
    losses = [[entry.get("step"), entry.get("loss")] for entry in record.get("history", ()) if "loss" in entry]
    return {
        "weights": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "tokenizer": hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest(),
        "evaluation": record["evaluation"],
        "events": record["ledger"]["events"],
        "clock": clock,
        "losses": losses,
    }


def difference(out: Path, expected: dict[str, Any]) -> str | None:
    """Says in what a run that has ended differs from the undisturbed one; `None` if in nothing."""
    found = fingerprint(out)
    if wrong := [name for name in expected if found[name] != expected[name]]:
        return f"ended with other {', '.join(wrong)}"
    if left := [path.name for path in out.glob(".*")]:
        return f"leaves {', '.join(left)}"
    return None


def broken(out: Path) -> str | None:
    """Says which checkpoint of a run is not whole, though none was damaged; `None` if all are."""
    return next((f"{one.name}: {wrong}" for one in checkpoints_in(out) if (wrong := fault(one))), None)


def counts(faults: list[Outcome], seconds: float) -> dict[str, Any]:
    """JSON of what came of the faults of a kind, which took so many seconds."""
    lost = [one.lost for one in faults]
    failures = [{"fault": one.fault, "failure": one.failure} for one in faults if one.failure]
    return {
        "injected": len(faults),
        "survived": len(faults) - len(failures),
        "steps_lost": {"mean": round(sum(lost) / len(lost), 2), "max": max(lost)},
        "failures": failures,
        "seconds": round(seconds, 1),
    }


Kind = Callable[[World, random.Random, int], list[Outcome]]
