"""Speed of every size and objective on one GPU, the profile of a step, and losses after an equal time.

    python examples/benchmark.py --suite gpu --out model_cards/results/benchmark_gpu.json

Three ways train each model: `stock` (transformers' Trainer and classes, dense logits, as `run_mlm.py`; ELECTRA as a
joint model of the two stock classes), `ours` (the same architecture), and `fast` (a ModernBERT with narrow windows in
its lower third, as the recipe `fast_small`, its layers compiled). They have the same rows, batch and precision, and no
dropout. Then stock, the same architecture here, and `fast_small` train for an equal time each.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmark import stock_rows
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_effpt.preparation import prepare_data
from hf_effpt.pretraining import build_trainer
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.meters import peak_flops, synchronize

# Settings of the model, and rows of a batch.
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "2x128 (tiny)": ({"size": "tiny"}, 1024),
    "4x256 (mini)": ({"size": "mini"}, 1024),
    "4x512 (small)": ({"size": "small"}, 512),
    "12x256 (ELECTRA-small)": ({"num_hidden_layers": 12, "hidden_size": 256, "num_attention_heads": 4}, 512),
    "8x512 (medium)": ({"size": "medium"}, 256),
    "12x768 (base)": ({"size": "base"}, 128),
    "24x1024 (large)": ({"size": "large"}, 64),
}
WAYS, OBJECTIVES = ("stock", "ours", "fast"), ("mlm", "electra")
PROFILED = ("12x768 (base)", "mlm", "fast")
WARM, MOST, SECONDS = 4, 40, 1.0  # steps before a measurement, most steps in it, and its time
LENGTH, VOCABULARY, EQUAL = 128, 30528, "75s"


class StockElectra(nn.Module):
    """ELECTRA as it is made of stock classes: a generator of a quarter of the width, and a discriminator over all."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        narrow = {
            "hidden_size": max(64, config.hidden_size // 4),
            "intermediate_size": max(256, config.intermediate_size // 4),
            "num_attention_heads": max(1, config.num_attention_heads // 4),
        }
        self.generator = ElectraForMaskedLM(ElectraConfig(**{**config.to_dict(), **narrow}))
        self.discriminator = ElectraForPreTraining(config)
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.tie_weights()

    def forward(self, input_ids: Any, labels: Any, **inputs: Any) -> dict[str, Any]:
        found = self.generator(input_ids, labels=labels, **inputs)
        chosen = labels != -100
        with torch.no_grad():
            drawn = found.logits[chosen].float().softmax(-1).multinomial(1).squeeze(1)
        replaced = input_ids.clone()
        replaced[chosen] = drawn
        original = torch.where(chosen, labels, input_ids)
        told = self.discriminator(replaced, labels=(replaced != original).long(), **inputs)
        return {"loss": found.loss + 50 * told.loss}


class Watch(TrainerCallback):
    """Times the steps after the first ones, ends the run after `SECONDS` of them, and profiles one if asked to."""

    def __init__(self, device: torch.device, profiled: bool) -> None:
        self.device, self.profiled, self.steps, self.seconds = device, profiled, 0, 0.0
        self.profile: profile | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        now, done = time.perf_counter(), state.global_step
        if self.profile is not None:
            self.profile.stop()
            control.should_training_stop = True
            return
        if done == WARM:
            self.began = now
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        if done > WARM:
            self.steps, self.seconds = done - WARM, now - self.began
        if self.seconds < SECONDS and self.steps < MOST:
            return
        if self.profiled:
            on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self.profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self.profile.start()
        else:
            control.should_training_stop = True


def recipe_of(way: str, objective: str, model: Mapping[str, Any], batch: int, dataset: str, folder: str) -> Recipe:
    """The recipe of a measurement; the stock way takes its shape, rows and arguments."""
    on_gpu = torch.cuda.is_available()
    sections: dict[str, Any] = {
        "model": {**model, "objective": objective},
        "data": {"dataset": dataset, "sequence_length": LENGTH, "vocab_size": VOCABULARY, "num_proc": 1},
        "training": {
            "output_dir": folder, "budget": f"{WARM + MOST + 2}steps", "per_device_train_batch_size": batch,
            "learning_rate": 1e-4, "bf16": on_gpu, "use_cpu": not on_gpu, "report_to": "none", "disable_tqdm": True,
            "save_strategy": "no", "eval_strategy": "no", "logging_steps": 1000,
        },
    }  # fmt: skip
    if way == "fast":
        shape = Recipe.load(sections).model.config_kwargs()
        lower = shape["num_hidden_layers"] // 3 or 1
        types = ["sliding_attention"] * lower + ["full_attention"] * (shape["num_hidden_layers"] - lower)
        sections["model"] |= {"backbone": "modernbert", "layer_types": types, "local_attention": 8}
        sections["training"]["compile_layers"] = on_gpu
    return Recipe.load(sections)


def stock_model(objective: str, shape: Mapping[str, Any], vocabulary: int) -> nn.Module:
    """A new model of stock classes without dropout."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {**shape, **none, "vocab_size": vocabulary}
    if objective == "electra":
        return StockElectra(ElectraConfig(**sizes, embedding_size=shape["hidden_size"]))
    return BertForMaskedLM(BertConfig(**sizes))


def stock_trainer(recipe: Recipe, tokenizer: Any, rows: Any) -> Trainer:
    """The stock Trainer on the rows of a recipe."""
    args, batch = recipe.training, recipe.training.per_device_train_batch_size
    own = recipe.model.config_kwargs()
    shape = {key: own[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")}
    set_seed(0)
    model = stock_model(recipe.model.objective, shape, -(-len(tokenizer) // 64) * 64)
    arguments = TrainingArguments(
        args.output_dir, max_steps=WARM + MOST + 2, per_device_train_batch_size=batch, learning_rate=1e-4,
        bf16=args.bf16, use_cpu=args.use_cpu, report_to="none", disable_tqdm=True, save_strategy="no",
        logging_steps=1000, seed=0, dataloader_num_workers=0, dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return Trainer(model, arguments, train_dataset=stock_rows(rows, tokenizer), data_collator=collator)


def flops_of(model: Any, rows: int) -> int:
    """FLOPs of forward and backward of a stock model on a batch of `rows`, computed on its device with one row."""
    device = next(model.parameters()).device
    ids = torch.zeros(1, LENGTH, dtype=torch.long, device=device)
    for part in (model.generator, model.discriminator) if isinstance(model, StockElectra) else (model,):
        part.set_attn_implementation("eager")
    labels = torch.where(torch.arange(LENGTH, device=device) < 19, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels)["loss"].backward()
    return counter.get_total_flops() * rows


def measure(way: str, objective: str, size: str, dataset: str, profiled: bool) -> dict[str, Any]:
    """Tokens a second, utilisation and memory of one way to train a model; or the error that it ends with."""
    model, batch = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(way, objective, model, batch, dataset, folder)
        _, tokenizer, splits = prepare_data(recipe)
        needed = batch * 8  # a few batches, which the stock side makes lists of
        splits["train"] = splits["train"].select([row % len(splits["train"]) for row in range(needed)])
        device = recipe.training.device
        try:
            if way == "stock":
                trainer = stock_trainer(recipe, tokenizer, splits["train"])
            else:
                trainer = build_trainer(recipe, tokenizer, splits)
            watch = Watch(device, profiled)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(watch)
            trainer.train()
            if way == "stock":
                flops = flops_of(trainer.model, batch) / (batch * LENGTH)
            else:
                flops = trainer.clock.flops / trainer.clock.tokens
        except torch.OutOfMemoryError as error:
            return {"error": str(error).splitlines()[0], "rows": batch}
    speed = watch.steps * batch * LENGTH / watch.seconds
    dtype = torch.bfloat16 if recipe.training.bf16 else torch.float32
    found = {"tokens_per_second": speed, "rows": batch, "steps": watch.steps, "flops_per_token": flops}
    found["mfu"] = speed * flops / peak_flops(device, dtype)
    if device.type == "cuda":
        found["memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    if watch.profile is not None:
        found["profile"] = profile_of(watch.profile, watch.seconds / watch.steps)
    return found


def profile_of(profiled: profile, step: float) -> dict[str, Any]:
    """The kernels, or operations of a CPU, that a step spends most on; and the share of it in which they run."""
    averages = profiled.key_averages()
    on_gpu = any(event.self_device_time_total for event in averages)

    def spent(event: Any) -> float:
        return (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6

    most = sorted(averages, key=spent, reverse=True)[:20]
    return {
        "step_seconds": step,
        "busy_share": sum(map(spent, averages)) / step,
        "largest": [{"name": event.key, "calls": event.count, "seconds": spent(event)} for event in most],
    }


def run_speeds(dataset: str) -> Iterator[dict[str, Any]]:
    """Measures all ways and prints a row each; yields what is known after each size.

    What has too little memory has an `error`.
    """
    results: dict[str, Any] = {}
    print(f"{'':24} {'objective':10}{'way':8}{'tokens/s':>12}{'MFU':>8}{'memory, MB':>12}")
    for size in SIZES:
        for objective in OBJECTIVES:
            for way in WAYS:
                profiled = (size, objective, way) == PROFILED
                found = measure(way, objective, size, dataset, profiled)
                results.setdefault(size, {}).setdefault(objective, {})[way] = found
                gc.collect()
                torch.compiler.reset()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                cells = f"{size:24} {objective:10}{way:8}"
                if "error" in found:
                    print(cells + found["error"], flush=True)
                    continue
                memory = found.get("memory_mb")
                cells += f"{found['tokens_per_second']:12,.0f}{found['mfu']:8.1%}"
                print(cells + ("" if memory is None else f"{memory:12,.0f}"), flush=True)
        yield results


def run_equal_time(dataset: str, budget: str, model: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Trains stock, this package at stock's architecture, and `fast_small` for the same time; returns their curves."""
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as name:
        plain, out = Path(name, "ours.yaml"), Path(name, "runs")
        training = {"per_device_train_batch_size": batch, "learning_rate": 1e-3, "output_dir": "out"}
        plain.write_text(json.dumps({"model": dict(model), "training": training}))  # JSON is YAML
        words = ["--budget", budget, "--seeds", "1", "--fractions", "1", "--out", str(out)]
        words += ["--data.dataset", dataset, "--data.vocab_size", str(VOCABULARY), "--training.bf16", str(on_gpu)]
        script = str(Path(__file__).with_name("against_stock.py"))
        subprocess.run([sys.executable, script, str(plain), "fast_small", *words], check=True)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    kept = ("held_out_loss", "clock", "curve")
    return {arm["name"]: {key: arm["runs"][0].get(key) for key in kept} for arm in report["arms"]}


def suite(dataset: str, budget: str = EQUAL) -> Iterator[dict[str, Any]]:
    """Yields the results again whenever there are more: `speed` by size, objective and way; `equal_time` by way."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"device": device, "torch": torch.__version__}
    for speed in run_speeds(dataset):
        yield found | {"speed": speed}
    equal = run_equal_time(dataset, budget, SIZES["4x512 (small)"][0], 256)
    for name, one in equal.items():
        print(f"{name}: {one['held_out_loss']:.3f} nats after {budget}, {one['clock']['tokens'] / 1e6:.1f} M tokens")
    yield found | {"speed": speed, "equal_time": equal}
