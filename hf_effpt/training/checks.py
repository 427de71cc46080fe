"""Checks of the parts of a run before training."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_effpt.core.anatomy import longest_row_of
from hf_effpt.core.clock import Clock
from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.core.method import Method
from hf_effpt.core.objectives import objective_of
from hf_effpt.core.row_method import candidates, row_methods
from hf_effpt.core.settings import plain
from hf_effpt.core.width import ELEMENTWISE
from hf_effpt.data.packing import PackedRows
from hf_effpt.models.base import EffptMixin

from .arguments import EffptTrainingArguments
from .muon import MUON, body_matrices


def check_arguments(args: Any) -> None:
    """Raises `EffptError` if `args` are of another class, do not know the other processes, or cannot be saved to."""
    if not isinstance(args, EffptTrainingArguments):
        raise EffptError(
            f"`args` must be `EffptTrainingArguments`, not `{type(args).__name__}`; it takes the same fields."
        )
    if args.world_size == 1 < int(os.environ.get("WORLD_SIZE", 1)) and "LOCAL_RANK" in os.environ:
        number = os.environ["WORLD_SIZE"]
        raise EffptError(
            f"This is one of {number} processes, and each would train a run of its own in {args.output_dir}: without "
            "a GPU they find each other with `training.use_cpu: true` only. If it is set, arguments that were made "
            "later do not have it."
        )
    check_folder(args.output_dir)


def check_folder(out: str | Path) -> None:
    """Raises `EffptError` if nothing can be written to the folder `out`, which need not be there yet."""
    there = Path(out).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is no folder"
        raise EffptError(f"The run cannot be saved in {out}: {there} {why}; give another `training.output_dir`.")


def check_parts(
    model: Any, args: Any, datasets: Sequence[Any], tokenizer: Any, given: Mapping[str, Any], trainer: Any
) -> None:
    """Raises `EffptError` if model, arguments, data and tokenizer do not fit each other or the class `trainer`.

    `given` are further arguments of the trainer: no ready-made optimizer or schedule may be among them.
    """
    if not isinstance(model, EffptMixin):
        raise EffptError(
            f"`EffptTrainer` trains models of this package, not `{type(model).__name__}`; load the same weights "
            "with `EffptBertForMaskedLM.from_pretrained(…)` or `ElectraForJointPreTraining.from_parts(…)`, or use the "
            "stock `Trainer`."
        )
    check_adapter(model)
    if given.get("optimizers", (None, None)) != (None, None):
        raise EffptError(
            "A ready-made optimizer cannot follow a model that resumes in another shape; pass its class "
            "and settings as `optimizer_cls_and_kwargs`. The schedule follows the budget."
        )
    if given.get("optimizer_cls_and_kwargs") is not None and (not args.bias_correction or args.optim == MUON):
        setting = f"optim={MUON!r}" if args.bias_correction else "bias_correction=False"
        raise EffptError(f"`optimizer_cls_and_kwargs` replaces the optimizer of `{setting}`; leave one of them out.")
    if objective_of(model.config) not in trainer.objectives:
        raise EffptError(
            f"`{trainer.__name__}` trains models with the objective {' or '.join(trainer.objectives)}, but "
            f"`{type(model).__name__}` has `{objective_of(model.config)}`; use `EffptTrainer`."
        )
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config)
    if tokenizer is not None and tokenizer.pad_token_id != model.config.pad_token_id:
        raise EffptError(
            f"The tokenizer pads with id {tokenizer.pad_token_id} but the model with {model.config.pad_token_id}; set "
            f"`pad_token_id={tokenizer.pad_token_id}` in the model's configuration."
        )
    nota = getattr(model.config, "nota_token_id", None)
    if tokenizer is not None and nota is not None and nota < len(tokenizer) and model.config.candidates_at == "all":
        token = tokenizer.convert_ids_to_tokens(nota)
        if not is_unused(token):
            raise EffptError(
                f"`nota_token_id` {nota}, the row for none of the above, is that of the token {token!r}: the "
                f"vocabulary has no free row there. Make `vocab_size` at least {len(tokenizer) + 1} and name a row "
                f"from {len(tokenizer)} on, or name that of an [unusedN] token."
            )
    for dataset in datasets:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise EffptError(
                f"`{type(dataset).__name__}` has no length, so a run on it could not be resumed exactly; pack the "
                "text first with `pack(…)`, which streams it to disk."
            )
        first = dataset[0] if len(dataset) and not PackedRows.fits(dataset) else None
        if isinstance(first, Mapping) and "inputs_embeds" in first and "input_ids" not in first:
            raise EffptError(
                f"The rows have {', '.join(first)}, and a run counts and masks tokens: give them `input_ids`. A "
                "model alone takes `inputs_embeds` too (`model(inputs_embeds=…, labels=…)`)."
            )
        if PackedRows.fits(dataset):
            check_length(PackedRows(dataset).sequence_length, model.config)


def check_adapter(model: Any) -> None:
    """Raises `EffptError` if the model has an adapter of PEFT."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise EffptError(
            "The model has an adapter (`add_adapter`), which neither checkpoints nor the exported stock model would "
            "hold; train it with the stock `Trainer`, for example on the exported model."
        )


def check_vocabulary(tokenizer: Any, config: Any) -> None:
    """Raises an `EffptError` if a model of this configuration has fewer tokens than the tokenizer."""
    if len(tokenizer) > (vocabulary := config.vocab_size):
        raise EffptError(
            f"The tokenizer has {len(tokenizer)} tokens but the model only {vocabulary}; set `vocab_size` of the "
            f"model's configuration to at least {len(tokenizer)}, or use the tokenizer the model was made for."
        )


def check_left(clock: Clock, costs: dict[str, float], flops: dict[str, float]) -> None:
    """Raises `EffptError` if the start of the model and the preparation of methods have spent the whole budget."""
    if clock.finished:
        spent = ", ".join(
            f"`{name}` {seconds:.1f} s and {flops.get(name, 0):.3g} FLOPs" for name, seconds in costs.items()
        )
        raise EffptError(
            f"What the model's start, or methods, needed before the run has cost {spent}, all of the budget "
            f"of {clock.budget:g} {clock.unit}; give a longer one."
        )


def exclude_specials(config: Any, tokenizer: Any) -> None:
    """Sets `special_token_ids` of a configuration with candidates, if unset: special tokens and unused rows.

    Raises `EffptError` if too few tokens are left.
    """
    if tokenizer is not None and getattr(config, "special_token_ids", ()) is None:
        config.special_token_ids = sorted({*tokenizer.all_special_ids, *range(len(tokenizer), config.vocab_size)})
        config.check_candidates()


def is_unused(token: str) -> bool:
    """Returns `True` for a placeholder token of the vocabulary, such as BERT's `[unused0]`."""
    return token.startswith("[unused") and token.endswith("]")


def check_length(length: int, config: Any) -> None:
    """Raises an `EffptError` if a model of this configuration has no positions for rows of `length` tokens."""
    if length > (longest := longest_row_of(config)):
        raise EffptError(
            f"Rows of {length} tokens do not fit a model of {longest} positions; raise `max_position_embeddings`, or "
            "pack shorter rows."
        )


def check_size(dataset: Any, args: Any, methods: Sequence[Method]) -> None:
    """Raises `EffptError` if the rows do not fill one optimizer step with all candidates of the methods."""
    number = args.train_batch_size * args.gradient_accumulation_steps
    wanted = candidates(methods, number, None, 0.0)
    if len(dataset) >= wanted * args.world_size:
        return
    if len(dataset) >= number * args.world_size:
        selecting = row_methods(methods)
        looking = next(method.name for method in selecting if method.candidates(number, None, 0.0) > number)
        raise EffptError(
            f"`{looking}` looks at {wanted * args.world_size} rows in a step, and the training data are "
            f"{len(dataset)}; use more text, a smaller batch, or keep a larger share."
        )
    raise EffptError(
        f"The training data are {len(dataset)} rows, too few for one step of {number * args.world_size}; use more "
        "text, shorter rows, or a smaller `per_device_train_batch_size` or `gradient_accumulation_steps`."
    )


def check_steps(clock: Clock, methods: list[Method]) -> None:
    """Raises `EffptError` if a method may change the model until the last step of the budget or later."""
    for method in methods:
        last = method.least_steps(int(clock.budget)) if clock.unit == "steps" else 0
        if last and last >= clock.budget:
            raise EffptError(
                f"`{method.name}` may change the model until step {last}, and the budget is "
                f"{clock.budget:g} steps; allow it fewer, or give the run more."
            )


def check_optimizer(optimizer: Any, methods: list[Method]) -> None:
    """Raises `EffptError` if a method cuts parameters and the optimizer's state cannot be cut along."""
    reshaping = [method.name for method in methods if method.changes_parameters]
    if reshaping and not isinstance(optimizer, ELEMENTWISE):
        raise EffptError(
            f"`{reshaping[0]}` cuts parameters in mid-run, and `{type(optimizer).__name__}` cannot follow: it keeps "
            "lists of parameters, or a state, that cannot be cut along with them. Use `training.optim: adamw_torch`."
        )


def check_body(model: Any, args: EffptTrainingArguments) -> None:
    """Raises `EffptError` if the optimizer cannot be made, or is Muon and no matrix is trained."""
    if args.optim != MUON:
        try:
            Trainer.get_optimizer_cls_and_kwargs(args, model)
        except (ImportError, ValueError) as error:
            raise EffptError(
                f"The optimizer `{plain(args.optim)}` cannot be made: {first_line(error)} "
                "Install what it needs, or use another `training.optim`, such as `adamw_torch_fused`."
            ) from error
        return
    context = RunContext(0, 0.0, args.seed, model=model)
    frozen = {parameter for method in model.methods for parameter in method.frozen(model.backbone, context)}
    if not any(weight.requires_grad and weight not in frozen for weight in body_matrices(model)):
        raise EffptError(
            "`training.optim` is `muon`, which updates the matrices of attention and feed-forward blocks, and here "
            "none of them is trained; use `adamw_torch_fused`."
        )
