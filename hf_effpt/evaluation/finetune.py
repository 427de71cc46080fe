"""Fine-tuning a stock checkpoint with the stock `Trainer`: one seed of one task."""

import inspect
import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_effpt.core.anatomy import dropouts_of
from hf_effpt.core.errors import EffptError
from hf_effpt.models.quiet import without_bars

from .glue_metrics import score
from .lora import add_lora
from .protocols import Settings
from .stock_checkpoint import check_finetunable, load, readable_length
from .tasks import Task


def make_accumulation_safe(model: PreTrainedModel) -> PreTrainedModel:
    """Makes gradients of an accumulated batch those of the whole batch, and returns the model.

    Stock classification heads accept `num_items_in_batch` but average over the micro-batch. The Trainer infers from
    their signature that they divide by it, and does not divide by the number of micro-batches, so gradients are too
    large by that factor (transformers issue 47688). The attribute set here overrides the inference.
    """
    model.accepts_loss_kwargs = False
    return model


def finetune(
    model_dir: str | Path, task: Task, settings: Settings, seed: int, lora: int | None = None, keep: Path | None = None
) -> dict[str, Any]:
    """Fine-tunes a model on a task and scores it on the validation examples.

    The model is a stock checkpoint with its tokenizer. `seed` is that of the new head, the order of examples and
    dropout. With `lora`, adapters of this rank and the head are trained only (Hu et al., 2021). The fine-tuned encoder
    is saved in the folder `keep`, if given.

    Returns:
        `seed`, `scores` (of each metric `value` and `note`), `train_examples`, `validation_examples`, `truncated`
        (examples of both that were cut), `steps`, `seconds`, `majority` (accuracy of always predicting the training
        set's commonest class, `None` for a regression) and `notes`.

    Raises an `EffptError` if the folder has no model and tokenizer to fine-tune, or PEFT is needed and missing.
    """
    began = time.perf_counter()
    check_finetunable(model_dir)
    set_seed(seed)
    tokenizer, model, notes = _load(model_dir, task, settings.dropout)
    length = min(settings.max_length, readable_length(model, tokenizer))
    if length < settings.max_length:
        notes.append(f"examples are cut to {length} tokens, all the model can read, not {settings.max_length}")
    segments = has_segments(model) or None
    train, truncated = _encode(task.train, task.text_columns, tokenizer, length, segments)
    validation = {}
    for part, rows in task.validation.items():
        validation[part], cut = _encode(rows, task.text_columns, tokenizer, length, segments)
        truncated += cut
    make_accumulation_safe(model)
    if lora is not None:
        model = add_lora(model, lora)
    with tempfile.TemporaryDirectory() as scratch:
        args = _arguments(settings, seed, scratch)
        optimizer = _layerwise(model.to(args.device), settings) if settings.layer_decay != 1 else None
        trainer = Trainer(model, args, DataCollatorWithPadding(tokenizer), train, optimizers=(optimizer, None))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        scores = {}
        for part, rows in validation.items():
            output = trainer.predict(rows)
            logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
            predicted = logits[:, 0] if task.label_names is None else logits.argmax(-1)
            if not np.isfinite(logits).all():
                predicted = np.full(len(logits), np.nan)
            for metric in task.metrics:
                result = score(metric, predicted, output.label_ids)
                scores[metric + part] = {"value": result.value, "note": result.note}
    seconds = time.perf_counter() - began
    if keep is not None:
        encoder = model.merge_and_unload() if lora is not None else model
        with _quiet_loading():
            encoder.base_model.save_pretrained(keep)
        tokenizer.save_pretrained(keep)
    return {
        "seed": seed,
        "scores": scores,
        "train_examples": len(train),
        "validation_examples": sum(map(len, validation.values())),
        "truncated": truncated,
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "majority": task.majority(),
        "notes": notes,
    }


def _arguments(settings: Settings, seed: int, scratch: str) -> TrainingArguments:
    parts = settings.gradient_accumulation_steps
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // parts,
        gradient_accumulation_steps=parts,
        per_device_eval_batch_size=64,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_epsilon=settings.eps,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),  # on a CPU it is a warning
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
    )


def _load(
    model_dir: str | Path, task: Task, dropout: float | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, list[str]]:
    """Loads the tokenizer and the encoder with a new head for the task; returns notes on them, too."""
    notes, dropouts = [], {}
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    if dropout is not None:
        dropouts = dict.fromkeys(dropouts_of(config), dropout)
        if not dropouts:
            notes.append(f"a `{config.model_type}` has no dropout known here to set to {dropout}: it keeps its own")
    if task.label_names is None:
        head = {"num_labels": 1, "problem_type": "regression"}
    else:
        names = dict(enumerate(task.label_names))
        labels = {name: index for index, name in names.items()}
        head = {"id2label": names, "label2id": labels, "problem_type": "single_label_classification"}
    with _quiet_loading():
        model, tokenizer, missing = load(AutoModelForSequenceClassification, model_dir, **head, **dropouts)
    encoder = f"{model.base_model_prefix}."
    if lost := [key for key in missing if key.startswith(encoder) and "pooler" not in key]:
        raise EffptError(
            f"{Path(model_dir).absolute()} lacks {len(lost)} weights of the encoder ({', '.join(lost[:3])}), which "
            "would be random. Export the model again."
        )
    return tokenizer, model, notes


def has_segments(model: PreTrainedModel) -> bool:
    """`True` if the model tells two texts of an input apart by `token_type_ids`, whatever its tokenizer gives."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and getattr(model.config, "type_vocab_size", 0) > 1


def _encode(
    rows: Dataset, texts: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, length: int, segments: bool | None
) -> tuple[list[dict[str, Any]], int]:
    """Tokens and labels of each example, and the number of examples that were cut.

    With `segments` the tokens of a pair tell its texts apart; `None` leaves that to the tokenizer.
    """
    encoded = tokenizer(
        *(rows[column][:] for column in texts), truncation=True, max_length=length, return_token_type_ids=segments
    )
    if encoded.encodings is None:
        raise EffptError(f"{type(tokenizer).__name__} has no fast (Rust) backend; save the model with one that has.")
    columns = {**encoded.data, "labels": rows["label"][:]}
    examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return examples, sum(bool(each.overflowing) for each in encoded.encodings)


def _layerwise(model: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW whose learning rate decays from layer to layer, from the head down to the embeddings.

    Embeddings are at depth 0, layers from 1, the head one above the last; parameters outside the layers count as head.
    ELECTRA's code (`_get_layer_lrs`) puts the head two above, which decays every layer once too often.
    """
    layers = model.config.num_hidden_layers
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if layer := re.search(r"\.layers?\.(\d+)\.", name):
                depth = int(layer[1]) + 1
            else:
                depth = 0 if "embeddings" in name else layers + 1
            groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)  # biases and norms have one axis
    rate, decay = settings.learning_rate, settings.weight_decay
    options = [
        {"params": params, "lr": rate * settings.layer_decay ** (layers + 1 - depth), "weight_decay": decays * decay}
        for (depth, decays), params in groups.items()
    ]
    return torch.optim.AdamW(options, betas=settings.betas, eps=settings.eps, fused=True)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silences progress bars and the report of new weights; `_load` checks which weights are new."""
    reporting = logging.getLogger("transformers.modeling_utils")

    def expected(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporting.addFilter(expected)
    try:
        with without_bars():
            yield
    finally:
        reporting.removeFilter(expected)
