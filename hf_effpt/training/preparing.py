"""Preparation of methods from the training text before a new run."""

import time
from functools import cache, partial
from typing import Any

import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method
from hf_effpt.data.packing import PackedRows
from hf_effpt.data.training_text import TrainingText


def prepare_methods(model: Any, rows: Any, tokenizer: Any, seed: int) -> dict[str, float]:
    """Prepares methods for a run; returns by name the seconds of those that read the text.

    Raises `EffptError` if a method needs text and the rows or tokenizer are missing or do not suit it.
    """
    seconds = {}
    for method in model.methods:
        if type(method).prepare is Method.prepare or rows is None:
            continue
        open_text = cache(partial(_open_text, method.name, model, rows, tokenizer, seed))
        began = time.perf_counter()
        method.prepare(model.backbone, RunContext(0, 0.0, seed, model=model, open_text=open_text))
        if open_text.cache_info().misses:
            seconds[method.name] = time.perf_counter() - began
    return seconds


def _open_text(name: str, model: Any, rows: Any, tokenizer: Any, seed: int) -> TrainingText:
    if not model.pretrains:
        raise EffptError(
            f"The method `{name}` reads the training text before a run, and "
            f"`{type(model).__name__}` learns from the labels of a task; fine-tune it with the stock `Trainer`."
        )
    if tokenizer is None or not PackedRows.fits(rows):
        raise EffptError(
            f"The method `{name}` looks through the training text, so `train_dataset` must be rows from "
            "`pack(…)` and `processing_class` the tokenizer that they were packed with."
        )
    return TrainingText(PackedRows(rows), tokenizer, seed)


def agreed(seconds: dict[str, float], accelerator: Any) -> dict[str, float]:
    """Mean over all processes, so that their clocks stay equal."""
    if not seconds:
        return {}
    mine = torch.tensor(list(seconds.values()), dtype=torch.float32, device=accelerator.device)
    return dict(zip(seconds, accelerator.reduce(mine, "mean").tolist(), strict=True))
