"""Plants faults in texts, tokenizers, recipes and runs, and says which of them `effpt doctor` finds; and healthy runs.

    python -m tests.by_diagnosis --out model_cards/results/diagnosis.json

The text is Python's documentation. Each fault is alone, and as large as a user would need to be told of.
"""

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from transformers import TrainerCallback

from hf_effpt import Recipe, pretraining
from hf_effpt.core.files import write_json
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.tokenizer_training import train_tokenizer
from hf_effpt.diagnosis.doctor import diagnose
from tests.tiny import StopAfter

GREEK = "αυτή η γλώσσα έχει δικά της γράμματα, και κανένα από αυτά δεν υπάρχει στα υπόλοιπα κείμενα."
FOUR = ("--model.num_hidden_layers", "4", "--model.layer_types", str(["sliding_attention", "full_attention"] * 2))
DOCUMENTS = 4000
STEPS = "400steps"
Case = Callable[[Path], list[str]]


@cache
def documents() -> tuple[str, ...]:
    """Some megabytes of text, in a random order."""
    texts = [text for text in open_corpus("builtin:pydoc").texts() if len(text) > 200]
    return tuple(random.Random(0).sample(texts, min(DOCUMENTS, len(texts))))


def told(target: object, *flags: str) -> list[str]:
    """Names of the findings of `effpt doctor`."""
    return [one.check for one in diagnose(str(target), flags).findings]


def written(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def shuffled(texts: list[str]) -> list[str]:
    return random.Random(1).sample(texts, len(texts))


def text(change: Callable[[list[str]], list[str]]) -> Case:
    """A text after a change of its documents."""
    return lambda folder: told(written(folder / "text.jsonl", change([*documents()])))


def leaked(folder: Path) -> list[str]:
    texts = documents()
    written(folder / "text" / "train.jsonl", texts[50:])
    written(folder / "text" / "validation.jsonl", [*texts[:45], *texts[50:55]])
    return told(folder / "text")


def blank(folder: Path) -> list[str]:
    written(folder / "text" / "a.jsonl", documents())
    (folder / "text" / "b.txt").write_text("\n \n")
    return told(folder / "text")


def tokenizer(texts: Callable[[], Sequence[str]], vocabulary: int) -> Case:
    """A recipe whose tokenizer was trained on these texts, and reads the documents."""

    def find(folder: Path) -> list[str]:
        train_tokenizer(str(written(folder / "own.jsonl", texts())), vocab_size=vocabulary, out=folder / "own")
        target = written(folder / "text.jsonl", documents())
        return told("tiny", "--data.dataset", str(target), "--data.tokenizer", str(folder / "own"))

    return find


def recipe(*flags: str, base: str = "fast_tiny") -> Case:
    return lambda folder: told(base, *flags)


def run(*flags: str, base: str = "fast_tiny", budget: str = STEPS, plant: Callable[[Any], None] | None = None) -> Case:
    """A run of a recipe on Python's documentation; `plant` changes its trainer, and stays until the run ends."""

    def find(folder: Path) -> list[str]:
        out, build = folder / "run", pretraining.build_trainer
        settings = {"budget": budget, "output_dir": out, "logging_steps": 5, "disable_tqdm": True}
        own = [word for key, value in settings.items() for word in (f"--training.{key}", str(value))]

        def planted(*args: Any) -> Any:
            trainer = build(*args)
            if plant is not None:
                plant(trainer)
            return trainer

        with patch.object(pretraining, "build_trainer", planted):
            pretraining.pretrain(Recipe.load(base, [*own, *flags]))
        return told(out)

    return find


class Jump(TrainerCallback):
    """Multiplies the learning rate for some steps."""

    def __init__(self, factor: float, steps: range) -> None:
        self.factor, self.steps = factor, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.factor


def slow_data(folder: Path) -> list[str]:
    mask = DataCollatorForMaskedLM.__call__

    def slow(self: Any, *args: Any) -> Any:
        time.sleep(0.1)
        return mask(self, *args)

    with patch.object(DataCollatorForMaskedLM, "__call__", slow):
        return run(budget="60steps")(folder)


def random_batches(folder: Path) -> list[str]:
    mask, calls = DataCollatorForMaskedLM.__call__, iter(range(10**9))

    def spoiled(self: Any, rows: Any, *args: Any) -> Any:
        if next(calls) in range(200, 210):
            draw = np.random.default_rng(0)
            rows = {**rows, "input_ids": draw.integers(1000, 8000, np.shape(rows["input_ids"]))}
        return mask(self, rows, *args)

    with patch.object(DataCollatorForMaskedLM, "__call__", spoiled):
        return run()(folder)


def small_text(folder: Path) -> list[str]:
    target = written(folder / "text.jsonl", documents()[:60])
    return run("--data.dataset", str(target), "--data.validation", "0.2", budget="900steps")(folder)


# The name of the finding that is expected, and what is planted.
PLANTED: dict[str, tuple[str, Case]] = {
    "half of the documents twice": ("doubles", text(lambda texts: shuffled(texts + texts[: len(texts) // 2]))),
    "validation documents that are trained on": ("leakage", leaked),
    "a text decoded wrongly": ("garbled", text(lambda texts: [one.replace("e", "\ufffd", 20) for one in texts])),
    "an empty file beside others": ("blank files", blank),
    "documents of five words": ("lengths", text(lambda texts: [" ".join(one.split()[:5]) for one in texts])),
    "a fifth of the documents in Greek": (
        "scripts", text(lambda texts: shuffled(texts + [f"{GREEK * 30} {place}" for place in range(len(texts) // 5)]))
    ),
    "a tokenizer of another script": (
        "unknown", tokenizer(lambda: [f"{GREEK} {place}" for place in range(200)], 384)
    ),
    "a tokenizer of 256 tokens": ("fragments", tokenizer(lambda: documents()[:300], 256)),
    "a learning rate of 0.5": ("learning rate", recipe("--training.learning_rate", "0.5")),
    "no warm-up": ("warm-up", recipe("--training.warmup_steps", "0")),
    "a rate that never decays": ("schedule", recipe("--training.lr_scheduler_type", "constant_with_warmup")),
    "a budget of 50 steps": ("batch", recipe("--training.budget", "50steps")),
    "a budget of a billion tokens on a small text": ("passes", recipe("--training.budget", "1e9tokens")),
    "rows that do not fit into memory": ("memory", recipe("--training.per_device_train_batch_size", "1000000")),
    "a rate at which the run diverges": (
        "divergence", run(plant=lambda trainer: trainer.add_callback(Jump(30, range(200, 400))))
    ),
    "ten batches of random tokens": ("spikes", random_batches),
    "30 steps without a start": ("floor", run("--model.start", "null", budget="30steps")),
    "a BERT of two layers": ("plateau", run("--training.per_device_train_batch_size", "8", base="tiny")),
    "25 kB of text, many times": ("overfit", small_text),
    "a run that was stopped": ("unfinished", run(plant=lambda trainer: trainer.add_callback(StopAfter(200)))),
    "masking that waits": ("data-bound", slow_data),
    "steps of one short row": (
        "launch-bound", run("--training.per_device_train_batch_size", "1", "--data.sequence_length", "16")
    ),
}  # fmt: skip
HEALTHY: dict[str, Case] = {
    "fast_tiny": run(),
    "fast_tiny, four layers": run(*FOUR),
    "LayerDrop": run(*FOUR, "--methods.layerdrop.p", "0.2"),
    "adaptive masking": run("--methods.selection.strategy", "adaptive_masking"),
    "Muon": run("--training.optim", "muon"),
    "rows of 256 tokens": run("--data.sequence_length", "256"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of the results")
    parser.add_argument("--cases", help="only these, by name, with ; between them")
    args = parser.parse_args()
    names = args.cases.split(";") if args.cases else [*PLANTED, *HEALTHY]
    results = []
    for name in names:
        expected, find = PLANTED[name] if name in PLANTED else (None, HEALTHY[name])
        with TemporaryDirectory() as folder:
            found = find(Path(folder))
        results.append({"case": name, "expected": expected, "found": found})
        print(results[-1], file=sys.stderr, flush=True)
        command = shlex.join(["python", "-m", "tests.by_diagnosis", *sys.argv[1:]])
        write_json(args.out, {"command": command, "results": results})


if __name__ == "__main__":
    main()
