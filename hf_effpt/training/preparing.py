"""Preparation of methods from the training text before a new run."""

import time
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method
from hf_effpt.core.objectives import OBJECTIVES, objective_of
from hf_effpt.core.undriven import release
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.packing import PackedRows
from hf_effpt.data.training_text import TrainingText

from . import checks, losses


def prepare_model(
    trainer: Any, model: Any, args: Any, data: tuple[Any, Any, Any], given: Mapping[str, Any]
) -> dict[str, float]:
    """Prepares `model` for a run of the class `trainer`; returns what [`prepare_methods`] does.

    `data` are training rows, evaluation rows and tokenizer, and `given` further arguments of the trainer. Raises
    `EffptError` if they do not fit each other.
    """
    rows, held_out, tokenizer = data
    parts = [rows, *(held_out.values() if isinstance(held_out, dict) else [held_out])]
    checks.check_parts(model, args, [part for part in parts if part is not None], tokenizer, given, trainer)
    if trainer.method is not None and trainer.method not in model.config.methods:
        model.add_method(trainer.method)
    losses.check_losses(model, args, given)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = bool(model.methods)  # a layer that does not run has no gradient
    if args.ddp_broadcast_buffers is None:
        args.ddp_broadcast_buffers = False  # buffers of methods change equally in all processes
    checks.exclude_specials(model.config, tokenizer)
    return prepare_methods(model, rows, tokenizer, args.seed)


def collator_for(model: Any, given: Any, tokenizer: Any, seed: int) -> tuple[Any, DataCollatorForMaskedLM | None]:
    """Returns the collator of a run, by default a masking one for pre-training, and the masking one in it, if any."""
    if given is None and tokenizer is not None and model.pretrains:
        given = DataCollatorForMaskedLM(tokenizer, seed=seed)
    inner = getattr(given, "collator", given)  # a collator may wrap the masking one
    if not isinstance(inner, DataCollatorForMaskedLM):
        return given, None
    if inner.shares is None:
        inner.shares = OBJECTIVES[objective_of(model.config)].corruption
    return given, inner


def prepare_methods(model: Any, rows: Any, tokenizer: Any, seed: int) -> dict[str, float]:
    """Prepares methods for a run; returns by name the seconds of those that read the text.

    Raises `EffptError` if a method needs text and the rows or tokenizer are missing or do not suit it.
    """
    release(model)
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


def compile_layers(model: Any) -> None:
    """Compiles the layers of a model one by one, so that dropped or added ones do not recompile the others."""
    for layer in layers_of(model.backbone).children():
        layer.compile()


def share_anew(wrapped: Any, accelerator: Any) -> None:
    """Has several processes average the gradients of the present parameters of a model that was cut or has grown.

    `wrapped` stays the same object, which the stock loop holds. The first process' weights are sent to the others.
    """
    if not isinstance(wrapped, DistributedDataParallel):
        return
    handler, devices = accelerator.ddp_handler, (wrapped.device_ids, wrapped.output_device)
    settings = handler.to_kwargs() if handler is not None else {}
    DistributedDataParallel.__init__(wrapped, wrapped.module, *devices, **settings)
    if handler is not None:
        handler.register_comm_hook(wrapped)


def agreed(seconds: dict[str, float], accelerator: Any) -> dict[str, float]:
    """Mean over all processes, so that their clocks stay equal."""
    if not seconds:
        return {}
    mine = torch.tensor(list(seconds.values()), dtype=torch.float32, device=accelerator.device)
    return dict(zip(seconds, accelerator.reduce(mine, "mean").tolist(), strict=True))
