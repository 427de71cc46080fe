"""Measures the cost of scoring a row over that of training on one: the `s` of the cost law, for every strategy.

    python examples/benchmark_selection.py --rounds 12 --out model_cards/results/selection_costs.json

Every arm is a strategy with a scorer and has its own trainer on random tokens, since the cost of a row does not depend
on its content. The arms take turns, one optimizer step each, on one CPU thread, so that a busy machine favours none.
For each arm: s in FLOPs, from its cost report; s in time, the seconds of its method per scored row over the seconds of
a step of the plain arm per row in the same round; the time of its step over that of the plain arm, which includes
collating more rows; and by the cost law the cost of a trained row, 1 + s / k, and of a row looked at, s + k. Values
are medians with the lower and upper quartile.
"""

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from hf_effpt import EffptTrainer, EffptTrainingArguments
from hf_effpt.methods.selection.strategies import STRATEGIES
from hf_effpt.models.build import config_for, model_for
from hf_effpt.training.record import cost_reports

VOCABULARY, LENGTH, BATCH, ROWS, KEEP, SEED, UNTIMED = 2048, 64, 32, 16384, 0.5, 1, 3
ALWAYS = {"start": 0.0, "end": 1.0, "interrupt": 0, "warmup": 0}
PLAIN = {"mlm": "plain mlm", "electra": "plain electra"}


def arms_of(holdout: str) -> dict[str, tuple[str, dict]]:
    """Returns objective and selection settings by arm name. Arms without settings are plain."""
    arms: dict[str, tuple[str, dict]] = {PLAIN["mlm"]: ("mlm", {}), PLAIN["electra"]: ("electra", {})}
    for strategy, kind in STRATEGIES.items():
        settings = {"strategy": strategy, **ALWAYS}
        settings |= {"keep": KEEP} if kind.picks_rows else {}  # otherwise `keep` is not a share of the rows
        settings |= {"holdout": holdout} if kind.compares else {}
        for scorer in [one for one in kind.scorers if one != "generator"] or [None]:
            scored = settings if scorer is None else {**settings, "scorer": scorer}
            arms[strategy if scorer is None else f"{strategy} {scorer}"] = ("mlm", scored)
    arms["deep_bayesian full, whole model"] = ("mlm", arms["deep_bayesian full"][1] | {"level": "full"})
    few = arms["deep_bayesian first_layer"][1] | {"num_score_positions": 3}
    arms["deep_bayesian first_layer, 3 positions"] = ("mlm", few)
    for scorer in ("full", "generator"):
        settings = {"strategy": "least_confidence", "scorer": scorer, "keep": KEEP, **ALWAYS}
        arms[f"electra: least_confidence {scorer}"] = ("electra", settings)
    return arms


def tokenizer_and_rows() -> tuple[PreTrainedTokenizerFast, Dataset]:
    specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    specials["mask_token"] = "[MASK]"
    words = [*specials.values(), *(f"w{number}" for number in range(VOCABULARY - len(specials)))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = np.random.default_rng(SEED).integers(len(specials), VOCABULARY, (ROWS, LENGTH), dtype=np.uint16)
    ids[:, 0], ids[:, -1] = words.index("[CLS]"), words.index("[SEP]")
    features = Features({"input_ids": Sequence(Value("uint16"), length=LENGTH)})
    rows = Dataset.from_dict({"input_ids": ids}, features)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **specials), rows


def model_of(layers: int, hidden: int, objective: str = "mlm", **settings: Any) -> Any:
    torch.manual_seed(SEED)
    settings |= {"embedding_size": hidden, "generator_size": 0.25} if objective == "electra" else {}
    return model_for(
        config_for(
            objective, vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers,
            num_attention_heads=max(2, hidden // 64), intermediate_size=4 * hidden, max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **settings,
        )
    )  # fmt: skip


class Arm(TrainerCallback):
    """Trainer in its own thread that does one step per call of `turn`."""

    def __init__(self, model: Any, rows: Dataset, tokenizer: PreTrainedTokenizerFast, out: str, steps: int) -> None:
        self.trainer = EffptTrainer(
            model=model,
            args=EffptTrainingArguments(
                output_dir=out, budget=f"{steps}steps", per_device_train_batch_size=BATCH, learning_rate=1e-4,
                seed=SEED, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[self],
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)
        self.seconds, self.totals = [], []
        self._mine, self._done, self._failure = threading.Event(), threading.Event(), None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def turn(self) -> None:
        """Does one step and waits for its end."""
        self._done.clear()
        self._mine.set()
        if not self._thread.is_alive():
            self._thread.start()
        self._done.wait()
        if self._failure is not None:
            raise self._failure

    def _train(self) -> None:
        try:
            self.trainer.train()
        except Exception as failure:
            self._failure = failure
        self._done.set()

    def _wait(self) -> None:
        self._mine.wait()
        self._mine.clear()
        self.began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Records the times of the step; runs after the callback of the clock, in which the method learns."""
        self.seconds.append(time.perf_counter() - self.began)
        self.totals.append(self.trainer.cost.method_seconds.get("selection", 0.0))
        if not control.should_training_stop:
            self._done.set()
            self._wait()

    @property
    def of_method(self) -> list[float]:
        """Seconds of the method in each timed step."""
        pairs = zip(self.totals[UNTIMED - 1 :], self.totals[UNTIMED:], strict=False)
        return [later - sooner for sooner, later in pairs]


def quarters(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def costs(arm: Arm, plain: Arm) -> dict[str, Any]:
    """Returns the cost of scoring in an arm relative to the training of the plain arm."""
    account = cost_reports(arm.trainer)["selection"]
    seen, judged, trained = (account[name] for name in ("seen", "scored", "trained"))
    steps = len(arm.seconds)
    bases = plain.seconds[UNTIMED:]
    of_rows = [own / ((judged or seen) / steps) for own in arm.of_method]
    s = [own / (base / BATCH) for own, base in zip(of_rows, bases, strict=True)]
    share, s_seconds = trained / seen, quarters(s)
    return {
        "keep": share,
        "judged_per_step": (judged or seen) // steps,
        "s_flops": account["s_flops"],
        "s_seconds": s_seconds,
        "per_trained": {"flops": 1 + account["s_flops"] / share, "seconds": 1 + s_seconds["median"] / share},
        "per_seen": {"flops": account["s_flops"] + share, "seconds": s_seconds["median"] + share},
        "step": quarters([own / base for own, base in zip(arm.seconds[UNTIMED:], bases, strict=True)]),
    }


def compare(layers: int, hidden: int, rounds: int, chosen: list[str] | None) -> dict[str, Any]:
    tokenizer, rows = tokenizer_and_rows()
    with tempfile.TemporaryDirectory() as folder:
        holdout = f"{folder}/holdout"
        model_of(max(1, layers // 2), hidden).export().save_pretrained(holdout)
        specs = {
            name: (objective, settings)
            for name, (objective, settings) in arms_of(holdout).items()
            if chosen is None or name in chosen or not settings
        }
        arms = {}
        for name, (objective, settings) in specs.items():
            model = model_of(layers, hidden, objective, methods={"selection": settings} if settings else {})
            arms[name] = Arm(model, rows, tokenizer, f"{folder}/run", rounds + UNTIMED)
        for _ in range(rounds + UNTIMED):
            for arm in arms.values():
                arm.turn()
    return {name: costs(arms[name], arms[PLAIN[objective]]) for name, (objective, own) in specs.items() if own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["4x128"], help="layers x hidden size (default 4x128)")
    names = [name for name, (_, settings) in arms_of("").items() if settings]
    parser.add_argument("--arms", nargs="+", choices=names, metavar="ARM", help="arms to measure (default all)")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each arm (default 12)")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    logging.getLogger("hf_effpt").setLevel(logging.ERROR)  # it warns that the random reference model has no known cost
    disable_progress_bar()
    torch.set_num_threads(1)
    results = {}
    for shape in args.models:
        layers, hidden = map(int, shape.split("x"))
        name = f"{shape}, vocabulary {VOCABULARY:,}, rows of {LENGTH} tokens"
        results[name] = compare(layers, hidden, args.rounds, args.arms)
        print(name)
        for arm, row in results[name].items():
            s, step = row["s_seconds"], row["step"]
            print(
                f"  {arm:38} s {row['s_flops']:.3f} in FLOPs, {s['median']:.3f} ({s['low']:.3f} to {s['high']:.3f}) "
                f"in time   1 + s/k {row['per_trained']['flops']:.2f}, {row['per_trained']['seconds']:.2f}   s + k "
                f"{row['per_seen']['flops']:.2f}, {row['per_seen']['seconds']:.2f}   step {step['median']:.2f}x",
                flush=True,
            )
    if args.out:
        words = ["--models", *args.models, "--rounds", str(args.rounds)]
        words += ["--arms", *args.arms] if args.arms else []
        command = shlex.join(["python", "examples/benchmark_selection.py", *words])
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"command": command, **machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
