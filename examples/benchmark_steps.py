"""Measures the cost of a training step of each objective against masked language modelling, at equal model size.

    python examples/benchmark_steps.py --out model_cards/results/benchmark_steps.json

Forward, backward and optimizer on the same rows. All arms run in one process and take turns, one step each, so that a
busy machine favours none. A ratio is the median over the rounds, with the lower and upper quartile. Masked language
modelling computes the outputs of its last layer at masked positions only, unless there is dropout. The other
objectives compute them everywhere, so they are compared with both.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from hf_effpt import Recipe, pack, train_tokenizer
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.packing import PackedRows
from hf_effpt.pretraining import build_model
from hf_effpt.training.flops import FlopCounter
from hf_effpt.training.preparing import prepare_methods

# model settings, vocabulary, tokens a row, rows a batch
SHAPES = {
    "4x128, vocabulary 2,048": ({"size": "tiny", "num_hidden_layers": 4}, 2048, 64, 32),
    "4x256, vocabulary 8,192": ({"size": "mini"}, 8192, 128, 16),
    "12x256 (ELECTRA-small), vocabulary 8,192": (
        {"num_hidden_layers": 12, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
         "embedding_size": 128}, 8192, 128, 8,
    ),
}  # fmt: skip
ARMS = {
    "mlm": ("mlm", {}),
    "tnf": ("mlm", {"tnf": {}}),
    "electra": ("electra", {}),
    "electra+tnf": ("electra", {"tnf": {}}),
    "mcbert": ("mcbert", {}),
}


class Arm:
    """Model with its optimizer, its batches, and the seconds of its steps."""

    def __init__(self, objective: str, methods: dict, settings: dict, dropout: float, rows, tokenizer, batch: int):
        section = {**settings, "objective": objective, "dropout": dropout}
        if objective in ("mlm", "mcbert"):
            section.pop("embedding_size", None)  # the embeddings of BERT are as wide as its layers
        recipe = Recipe.load({"model": section, "methods": methods, "data": {"dataset": "-"}})
        self.model = build_model(recipe, tokenizer).train()
        prepare_methods(self.model, rows, tokenizer, seed=0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        collate = DataCollatorForMaskedLM(tokenizer, shares=OBJECTIVES[objective].corruption)
        found = PackedRows(rows).rows(range(4 * batch))["input_ids"]
        self.batches = [collate({"input_ids": found[at : at + batch]}) for at in range(0, 4 * batch, batch)]
        self.batches = [{name: part.to(self.device) for name, part in each.items()} for each in self.batches]
        self.seconds: list[float] = []

    def step(self, number: int) -> None:
        began = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.model(**self.batches[number % 4]).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)


def compare(shape: str, dropout: float, dataset: str, rounds: int) -> dict:
    settings, vocabulary, length, batch = SHAPES[shape]
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(dataset, vocab_size=vocabulary)
    rows = pack(dataset, tokenizer, sequence_length=length)["train"]
    arms = {name: Arm(*spec, settings, dropout, rows, tokenizer, batch) for name, spec in ARMS.items()}
    whole = Arm("mlm", {}, settings, dropout, rows, tokenizer, batch)
    whole.model.bert.encoder.layer.read_whole = True
    arms = {"mlm": arms["mlm"], "mlm, last layer everywhere": whole, **arms}
    for number in range(rounds + 3):
        for arm in arms.values():
            arm.step(number)
    found = {}
    for name, arm in arms.items():
        ratios = {}
        for base in ("mlm", "mlm, last layer everywhere", "electra"):
            pairs = zip(arms[base].seconds[3:], arm.seconds[3:], strict=True)
            low, middle, high = statistics.quantiles([mine / theirs for theirs, mine in pairs], n=4)
            ratios[base] = {"median": middle, "low": low, "high": high}
        found[name] = {
            "milliseconds": 1e3 * statistics.median(arm.seconds[3:]),
            "gflops": FlopCounter().count(arm.model, arm.batches[0]) / 1e9,
            "ratio_to": ratios,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="builtin:pydoc", help="what `data.dataset` takes (default builtin:pydoc)")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="models to measure")
    parser.add_argument("--rounds", type=int, default=40, help="timed steps of each arm (default 40)")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    results = {}
    for shape in args.shapes:
        for dropout in (0.0, 0.1):
            found = results.setdefault(shape, {})[f"dropout {dropout}"] = compare(
                shape, dropout, args.dataset, args.rounds
            )
            print(f"{shape}, dropout {dropout}")
            for name, row in found.items():
                to = "   ".join(f"{base}: {ratio['median']:.2f}x" for base, ratio in row["ratio_to"].items())
                print(f"  {name:28} {row['milliseconds']:8.1f} ms  {row['gflops']:7.1f} GFLOP   {to}", flush=True)
    if args.out:
        words = ["--dataset", args.dataset, "--rounds", str(args.rounds), "--shapes", *args.shapes]
        command = shlex.join(["python", "examples/benchmark_steps.py", *words])
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"command": command, **machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
