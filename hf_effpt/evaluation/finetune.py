"""Fine-tuning a stock checkpoint with the stock `Trainer`, one seed of one task or a whole protocol."""

import logging
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.metrics import score
from hf_effpt.evaluation.protocols import Protocol, Settings, find_protocol
from hf_effpt.evaluation.tasks import Task, base_name, load_task


def finetune(
    model_dir: str | Path, task: Task, settings: Settings, seed: int, lora: int | None = None
) -> dict[str, Any]:
    """Fine-tunes a model on a task and scores it on the validation examples; nothing is kept of the model.

    Args:
        model_dir (`str` or `Path`): the folder of a stock checkpoint, with its tokenizer.
        task ([`Task`]): what is learned.
        settings ([`Settings`]): how.
        seed (`int`): of the new head, the order of examples and dropout.
        lora (`int`, *optional*): trains LoRA adapters of this rank and the head only (Hu et al., 2021).

    Returns:
        `seed`, `scores` (of each metric `value` and `note`), `train_examples`, `validation_examples`, `truncated`
        (examples of both cut to fit), `steps`, `seconds`, `majority` (the accuracy of always giving the commonest
        class of the training examples, `None` for a regression) and `notes`.

    Raises:
        EffptError: the folder has no model and tokenizer that can be fine-tuned, or PEFT is needed and missing.
    """
    return _finetune(model_dir, task, settings, seed, lora, keep=None)


def finetune_suite(
    model_dir: str | Path,
    tasks: Sequence[str] | None,
    protocol: str | Protocol,
    *,
    data: str | Path | None,
    seeds: int | Sequence[int] | None = None,
    lora: int | None = None,
    on_result: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model on tasks as a protocol has it, over its seeds.

    Args:
        model_dir (`str` or `Path`): the folder of a stock checkpoint, with its tokenizer.
        tasks (`Sequence[str]`, *optional*): as `load_task` takes them; by default all of the protocol's.
        protocol (`str` or [`Protocol`]): `default`, `glue9_cramming`, `glue8_mosaic` or `glue8_electra`.
        data (`str` or `Path`): where known tasks are, a folder or `"hub"`; `None` if none is named.
        seeds (`int` or `Sequence[int]`, *optional*): how many, or which; by default the protocol's number.
        lora (`int`, *optional*): as for [`finetune`]; the scores' names then end in `+loraRANK`.
        on_result (`Callable`, *optional*): called with the task's name and the result of [`finetune`] of each seed.

    Returns:
        `protocol`, `lora`, `tasks` (by score name: `value`, `statistic`, `standard_deviation`, `seeds`, `notes`) and
        `average` (`value` and `note`). A score that one seed lacks has no value, nor has an incomplete average.

    Raises:
        EffptError: before anything is trained, for a task, protocol or model that cannot be used.
    """
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    names = list(dict.fromkeys(protocol.reported if tasks is None else tasks))
    if not names:
        raise EffptError(f"No tasks were named, and the protocol `{protocol.name}` has none of its own. Name some.")
    loaded = [load_task(name, data) for name in names]
    loaded.sort(key=lambda task: base_name(task.name) != "mnli")  # others may start from it
    waiting = [task.name for task in loaded if base_name(task.name) in protocol.from_mnli]
    if waiting and base_name(loaded[0].name) != "mnli":
        raise EffptError(
            f"In {protocol.name}, {', '.join(waiting)} start from the model fine-tuned on MNLI, which is not among "
            "the tasks. Add mnli, or use another protocol."
        )
    plans = [
        (task, protocol.settings_of(base_name(task.name)), protocol.choose_seeds(base_name(task.name), seeds))
        for task in loaded
    ]
    _check_start(model_dir, lora)
    scores: dict[str, dict[str, Any]] = {}
    values: dict[tuple[str, str], float | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        on_mnli = Path(scratch) / "mnli"
        for task, settings, numbers in plans:
            notes = list(task.notes)
            start = model_dir
            if task.name in waiting:
                start = on_mnli
                notes.append(f"started from the encoder fine-tuned on {loaded[0].name}")
            if len(numbers) != (usual := protocol.seeds_of(base_name(task.name))):
                notes.append(f"seeds: {len(numbers)}, where the protocol has {usual}")
            results = []
            for seed in numbers:
                keep = on_mnli if waiting and task is loaded[0] and seed == numbers[0] else None
                results.append(_finetune(start, task, settings, seed, lora, keep))
                if on_result:
                    on_result(task.name, results[-1])
            own = tuple(f"{metric}{part}" for part in task.validation for metric in task.metrics)
            for figure in protocol.figures_of(base_name(task.name), own):
                name = protocol.score_name(task.name, figure) + (f"+lora{lora}" if lora else "")
                scores[name] = protocol.over_seeds(figure, results, notes)
                values[task.name, figure] = scores[name]["value"]
    average, note = protocol.average(values)
    return {
        "protocol": protocol.name,
        "lora": lora,
        "tasks": scores,
        "average": {"value": average, "note": note},
    }


def make_accumulation_safe(model: PreTrainedModel) -> PreTrainedModel:
    """Makes gradients of an accumulated batch those of the whole batch, and returns the model.

    Stock classification heads take `**kwargs` and average over the micro-batch whatever `num_items_in_batch` they are
    given, but the Trainer takes the keyword arguments to mean that they divide by it, and so does not divide by the
    number of micro-batches: gradients are that many times too large (transformers issue 47688). It asks the attribute
    set here first.
    """
    model.accepts_loss_kwargs = False
    return model


def add_lora(model: PreTrainedModel, rank: int) -> Any:
    """Freezes the model but for its head and pooler, and adds LoRA to the projections of attention.

    Args:
        model (`PreTrainedModel`): with a classification head.
        rank (`int`): of the updates; they are scaled by 1 (alpha = rank), as for RoBERTa in Hu et al. (2021).

    Raises:
        EffptError: PEFT is not installed, the rank is below 1, or no attention is found.
    """
    _check_lora(rank)
    from peft import LoraConfig, TaskType, get_peft_model

    names = [name for name, module in model.base_model.named_modules() if isinstance(module, torch.nn.Linear)]
    projections = [name for name in names if re.search(r"(^|\.)layers?\.\d+\..*att", name)]
    if not projections:
        raise EffptError(f"{type(model).__name__} has no attention projections that LoRA could adapt; train without.")
    head = [
        name for name, module in model.named_children() if module is not model.base_model and [*module.parameters()]
    ]
    pooler = ["pooler"] if getattr(model.base_model, "pooler", None) is not None else []
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=rank,
        target_modules=projections,
        modules_to_save=[*head, *pooler],
    )
    with warnings.catch_warnings():  # PEFT asks the model by a name that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def _finetune(
    model_dir: str | Path, task: Task, settings: Settings, seed: int, lora: int | None, keep: Path | None
) -> dict[str, Any]:
    """`finetune`, which also saves the encoder to `keep`, as a place to start from."""
    began = time.perf_counter()
    _check_start(model_dir, lora)
    set_seed(seed)
    tokenizer, model = _load(model_dir, task)
    length = min(settings.max_length, _readable(model, tokenizer))
    notes = []
    if length < settings.max_length:
        notes.append(f"examples are cut to {length} tokens, all the model can read, not {settings.max_length}")
    train, truncated = _encode(task.train, task.text_columns, tokenizer, length)
    validation = {}
    for part, rows in task.validation.items():
        validation[part], cut = _encode(rows, task.text_columns, tokenizer, length)
        truncated += cut
    make_accumulation_safe(model)
    if lora is not None:
        model = add_lora(model, lora)
    with tempfile.TemporaryDirectory() as scratch:
        args = _arguments(settings, seed, scratch)
        optimizer = _layerwise(model.to(args.device), settings) if settings.layer_decay != 1 else None
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=train,
            data_collator=DataCollatorWithPadding(tokenizer),
            optimizers=(optimizer, None),
        )
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


def _load(model_dir: str | Path, task: Task) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The tokenizer, and the encoder with a new head for the task."""
    if task.label_names is None:
        head = {"num_labels": 1, "problem_type": "regression"}
    else:
        names = dict(enumerate(task.label_names))
        head = {
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "problem_type": "single_label_classification",
        }
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        with _quiet_loading():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                model_dir, local_files_only=True, output_loading_info=True, dtype=torch.float32, **head
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EffptError(
            f"{Path(model_dir).absolute()} cannot be fine-tuned ({type(error).__name__}: {error}). It must be the "
            "folder of a stock encoder with its tokenizer, such as the root of a run's folder."
        ) from error
    lost = sorted(
        key for key in info["missing_keys"] if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key
    )
    if lost:
        raise EffptError(
            f"{Path(model_dir).absolute()} lacks {len(lost)} weights of the encoder ({', '.join(lost[:3])}), which "
            "would be random. Export the model again."
        )
    return tokenizer, model


def _check_start(model_dir: str | Path, lora: int | None) -> None:
    files = {path.name for path in Path(model_dir).glob("*")}
    if "config.json" not in files:
        raise EffptError(
            f"{Path(model_dir).absolute()} has no config.json, but must be the folder of a stock checkpoint; a model "
            "on the Hub has to be downloaded first."
        )
    # Without one AutoTokenizer makes an empty tokenizer, to which every word is unknown.
    if not files & {"tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"}:
        raise EffptError(
            f"{Path(model_dir).absolute()} has no tokenizer; save the one that the model was trained with there: "
            "tokenizer.save_pretrained(...)."
        )
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise EffptError(
            f"{Path(model_dir).absolute()} holds a `{config.model_type}`, for which transformers has no sequence "
            "classification; use an encoder, such as a BERT."
        )
    if lora is not None:
        _check_lora(lora)


def _check_lora(rank: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise EffptError(f"The rank of LoRA is {rank!r}, but must be a whole number of at least 1, such as 8.")
    try:
        import peft  # noqa: F401  heavy, and needed for LoRA only
    except ImportError as error:
        raise EffptError("LoRA needs PEFT, which is not installed: pip install 'hf_effpt[lora]'") from error


def _readable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of an example the model can read."""
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in model.config.model_type:  # its positions count from behind the padding token's id
        positions -= model.config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)


def _encode(
    rows: Dataset, texts: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[list[dict[str, Any]], int]:
    """Tokens and labels of each example, and how many examples were cut."""
    encoded = tokenizer(*(rows[column][:] for column in texts), truncation=True, max_length=length)
    if encoded.encodings is None:
        raise EffptError(f"{type(tokenizer).__name__} has no fast (Rust) backend; save the model with one that has.")
    columns = {**encoded.data, "labels": rows["label"][:]}
    examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return examples, sum(bool(each.overflowing) for each in encoded.encodings)


def _layerwise(model: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW in which each layer learns slower than the one above it.

    The depths are those of ELECTRA's code (`_get_layer_lrs`): embeddings 0, layers from 1, the head two above the
    last. Whatever is in no layer counts as head.
    """
    layers = model.config.num_hidden_layers
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if layer := re.search(r"\.layers?\.(\d+)\.", name):
                depth = int(layer[1]) + 1
            else:
                depth = 0 if "embeddings" in name else layers + 2
            groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)  # biases and norms have one axis
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": settings.learning_rate * settings.layer_decay ** (layers + 2 - depth),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (depth, decays), parameters in groups.items()
        ],
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silences progress bars and the report that a new head is new, whose other contents are checked by `_load`."""
    reporting = logging.getLogger("transformers.modeling_utils")
    bars = transformers_logging.is_progress_bar_enabled()

    def expected(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporting.addFilter(expected)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        reporting.removeFilter(expected)
        if bars:
            transformers_logging.enable_progress_bar()
