"""Measures the speed and memory of masked-LM pre-training against the stock `run_mlm.py`.

    python examples/benchmark.py --suite cpu --out model_cards/results/benchmark_cpu.json
    python examples/benchmark.py --suite modernbert --out model_cards/results/benchmark_modernbert.json
    python examples/benchmark.py --suite data --out model_cards/results/benchmark_data.json
    python examples/benchmark.py --suite gpu --out model_cards/results/benchmark_gpu.json    # see benchmark_gpu.py

Both sides get the same weights, rows, batch and precision. Every measurement is a process of its own, and the sides
take turns (A B A B), so that neither a busy machine nor the allocator's history favours one. Each model is measured
at equal dropout and with the default dropout of each side (stock 0.1, this package 0).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# layers, hidden size, heads, vocabulary, rows a batch, optimizer steps a measurement, precision
SUITES = {
    "cpu": {
        "2x128, vocabulary 8,192": (2, 128, 2, 8192, 32, 24, "fp32"),
        "4x256, vocabulary 30,522": (4, 256, 4, 30522, 32, 10, "fp32"),
    },
}
SUITES["modernbert"] = SUITES["cpu"]
LENGTH, WARM_UP = 128, 4
DROPOUT = {"equal dropout (0.1)": (0.1, 0.1), "own defaults (0.1 against 0)": (0.1, 0.0)}
# Neither side of ModernBERT has dropout; only ours keeps the documents of a row apart.
KINDS = {"documents of a row attend to each other": "modernbert", "ours keeps them apart": "modernbert apart"}


def stock_rows(rows: Any, tokenizer: Any) -> Any:
    """Rows as `run_mlm.py` prepares them: lists with all the columns that the tokenizer returns."""
    return type(rows).from_list(
        [
            {
                "input_ids": ids,
                "token_type_ids": [0] * len(ids),
                "attention_mask": [1] * len(ids),
                "special_tokens_mask": tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True),
            }
            for ids in rows["input_ids"]
        ]
    )


def measure(side: str, shape: tuple, dropout: float, dataset: str, kind: str = "bert") -> dict:
    """Trains one side for some steps; returns tokens per second after the warm-up steps, and peak memory."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        ModernBertConfig,
        ModernBertForMaskedLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from hf_effpt import (
        EffptBertConfig,
        EffptBertForMaskedLM,
        EffptModernBertConfig,
        EffptModernBertForMaskedLM,
        EffptTrainer,
        EffptTrainingArguments,
    )
    from hf_effpt.data.corpus import open_corpus
    from hf_effpt.preparation import prepare_rows, prepare_tokenizer
    from hf_effpt.recipe.recipe import Recipe

    layers, hidden, heads, vocabulary, batch, steps, precision = shape
    apart = kind == "modernbert apart" and side != "stock"
    recipe = Recipe.load({"data": {"dataset": dataset, "sequence_length": LENGTH, "isolate_documents": apart}})
    corpus = open_corpus(dataset)
    tokenizer = prepare_tokenizer(recipe, corpus)
    rows = prepare_rows(recipe, corpus, tokenizer, recipe.data.held_out)["train"].select(range(batch * (steps + 1)))
    sizes = {
        "vocab_size": vocabulary,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }
    if kind == "bert":
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        stock, ours = (BertForMaskedLM, BertConfig), (EffptBertForMaskedLM, EffptBertConfig)
    else:
        sizes |= {"intermediate_size": round(8 * hidden / 3 / 64) * 64, "pad_token_id": tokenizer.pad_token_id}
        stock = (ModernBertForMaskedLM, ModernBertConfig)
        ours = (EffptModernBertForMaskedLM, EffptModernBertConfig)
    common = {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-4,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 10,
        "bf16": precision == "bf16",
        "seed": 0,
    }
    cuda = torch.cuda.is_available()
    ticks = []

    class Tick(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if cuda:
                torch.cuda.synchronize()
            ticks.append(time.perf_counter())

    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if side == "stock":
            trainer = Trainer(
                stock[0](stock[1](**sizes)),
                TrainingArguments(folder, **common),
                train_dataset=stock_rows(rows, tokenizer),
                data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
            )
        else:
            trainer = EffptTrainer(
                ours[0](ours[1](**sizes)),
                EffptTrainingArguments(folder, **common),
                train_dataset=rows,
                processing_class=tokenizer,
            )
        trainer.add_callback(Tick())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer.train()
    seconds = statistics.median(
        after - begun for begun, after in zip(ticks[WARM_UP:], ticks[WARM_UP + 1 :], strict=False)
    )
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens_per_second": batch * LENGTH / seconds,
        "peak_memory_mb": peak / 2**20,
        "training_memory_mb": None if cuda else peak / 2**20 - before / 1024,
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
    }


def compare(shape: tuple, dropouts: tuple[float, float], dataset: str, rounds: int, kind: str = "bert") -> dict:
    """Runs the sides in turns and compares them round by round."""
    found = {"stock": [], "hf_effpt": []}
    for _ in range(rounds):
        for side, dropout in zip(found, dropouts, strict=True):
            command = [sys.executable, __file__, "--measure", json.dumps([side, shape, dropout, dataset, kind])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    speed = {side: [run["tokens_per_second"] for run in runs] for side, runs in found.items()}
    memory = {side: max(run["peak_memory_mb"] for run in runs) for side, runs in found.items()}
    ratios = [ours / stock for stock, ours in zip(speed["stock"], speed["hf_effpt"], strict=True)]
    return {
        "tokens_per_second": {side: statistics.median(values) for side, values in speed.items()},
        "peak_memory_mb": memory,
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "runs": found,
    }


def measure_data(dataset: str) -> dict:
    """Times tokenizing and packing on one core from a cold cache, and a second call from the cache."""
    from hf_effpt import pack, train_tokenizer
    from hf_effpt.data.corpus import open_corpus
    from hf_effpt.data.packing import facts

    corpus = open_corpus(dataset)
    corpus.fingerprint  # noqa: B018  reading the files once is not part of packing them
    tokenizer = train_tokenizer(corpus)
    found = {}
    for isolated in (False, True):
        with tempfile.TemporaryDirectory() as cache:
            began, cpu = time.perf_counter(), time.process_time()
            rows = pack(corpus, tokenizer, isolate_documents=isolated, cache_dir=cache, num_proc=1)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            began = time.perf_counter()
            pack(open_corpus(dataset), tokenizer, isolate_documents=isolated, cache_dir=cache, num_proc=1)
            again = time.perf_counter() - began
            megabytes = sum(facts(part)["bytes"] for part in rows.values()) / 1e6
        found["documents isolated" if isolated else "one stream"] = {
            "megabytes": megabytes, "seconds": seconds, "megabytes_per_core_second": megabytes / cpu,
            "second_call_seconds": again,
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[*SUITES, "data", "gpu"], default="cpu")
    parser.add_argument("--dataset", default="builtin:pydoc", help="what `data.dataset` takes (default builtin:pydoc)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns (default 3)")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        side, shape, *rest = json.loads(args.measure)
        print(json.dumps(measure(side, tuple(shape), *rest)))
        return
    if args.suite == "gpu":
        from benchmark_gpu import suite

        for results in suite(args.dataset):  # what there is so far, should there be too little time for all
            save(args, results)
        return
    if args.suite == "data":
        results = measure_data(args.dataset)
        for name, row in results.items():
            print(f"{name}: {row['megabytes_per_core_second']:.2f} MB/s a core ({row['megabytes']:.0f} MB in "
                  f"{row['seconds']:.1f} s), again from the cache {row['second_call_seconds']:.2f} s")  # fmt: skip
    else:
        results = compare_all(args.suite, args.dataset, args.rounds)
    save(args, results)


def save(args: argparse.Namespace, results: dict) -> None:
    """Writes the results of a suite into the file asked for, if there is one."""
    if args.out:
        command = f"python examples/benchmark.py --suite {args.suite} --dataset {args.dataset} --rounds {args.rounds}"
        args.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        args.out.write_text(json.dumps({"command": command, **machine, "results": results}, indent=2) + "\n")


def compare_all(suite: str, dataset: str, rounds: int) -> dict:
    """Measures all models of a suite at both settings and prints a row each."""
    results = {}
    print(f"{'':32} {'stock':>12} {'hf_effpt':>12}   {'ratio (lowest-highest)':24} peak memory, MB")
    for model, shape in SUITES[suite].items():
        variants = {name: ((0.0, 0.0), kind) for name, kind in KINDS.items()}
        if suite != "modernbert":
            variants = {name: (dropouts, "bert") for name, dropouts in DROPOUT.items()}
        for name, (dropouts, kind) in variants.items():
            found = results.setdefault(model, {})[name] = compare(shape, dropouts, dataset, rounds, kind)
            speed, ratio, memory = found["tokens_per_second"], found["ratio"], found["peak_memory_mb"]
            spread = f"{ratio['median']:.2f}x ({ratio['lowest']:.2f}-{ratio['highest']:.2f})"
            print(
                f"{model}\n  {name:30} {speed['stock']:>10,.0f}/s {speed['hf_effpt']:>10,.0f}/s   {spread:24} "
                f"{memory['stock']:.0f} against {memory['hf_effpt']:.0f}",
                flush=True,
            )
    return results


if __name__ == "__main__":
    main()
