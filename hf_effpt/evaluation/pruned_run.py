"""Pruning of the model in a run's folder, checked before the model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

import hf_effpt.models
from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES, objective_in, objective_of

from .held_out_text import held_out_text, is_auxiliary, run_of
from .pruning import EVERY_OTHER, SEARCH, check_head, check_pruning, choose_layers


def pruner_of(
    folder: Path, depth: int, strategy: str = EVERY_OTHER, text: str | None = None
) -> Callable[[PreTrainedModel], tuple[PreTrainedModel, dict[str, Any]]]:
    """Makes a function that prunes the exported model of a folder.

    `folder` is a training checkpoint or a finished run; the other arguments are those of [`prune_layers`], but `text`,
    as `data.dataset` takes it, replaces the rows; by default the run's held-out or training text.

    Returns a function from the stock model to the pruned one and its entry for `run.json`. Raises an `EffptError` if
    the depth or strategy does not suit the model, or the text is missing.
    """
    config, found = AutoConfig.from_pretrained(folder, local_files_only=True), {}
    order = getattr(config, "layer_order", None)  # layers that run, of a training checkpoint
    check_pruning(depth, config.num_hidden_layers if order is None else len(order), strategy)
    if strategy == EVERY_OTHER and text is not None:
        raise EffptError(f"`every_other` chooses layers without text, but {text!r} is given; leave it out.")
    if strategy != EVERY_OTHER:
        _check_model(folder, config, strategy)
        found = _text(folder, config, strategy, text)

    def prune(stock: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Any]]:
        device = torch.device("cuda" if found and torch.cuda.is_available() else "cpu")
        pruning = choose_layers(stock.to(device), depth, strategy, **found)
        return pruning.apply(stock.to("cpu")), pruning.record()

    return prune


def _check_model(folder: Path, config: Any, strategy: str) -> None:
    """Raises an `EffptError` unless the model predicts masked tokens, and has learned to."""
    name = (config.architectures or ["unknown"])[0]
    training_class = getattr(hf_effpt.models, name, None)
    if training_class is not None:
        name = training_class.stock_class_of(config).__name__
    check_head(strategy, name, name.endswith("ForMaskedLM"))
    objective = objective_in(run_of(folder)) if training_class is None else objective_of(config)
    if not is_auxiliary(folder) and not OBJECTIVES[objective].reads_mask:
        raise EffptError(
            f"The strategy `{strategy}` masks tokens, and a model pre-trained by `{objective}` has never read the "
            "mask token; use `every_other`, which needs no text."
        )


def _text(folder: Path, config: Any, strategy: str, text: str | None) -> dict[str, Any]:
    """Rows to choose layers by, and their tokenizer."""
    # A checkpoint has no record of its run, whose folder it is in, and may have been saved without the tokenizer.
    root = folder if (folder / "run.json").is_file() else folder.resolve().parent
    place = folder if (folder / "tokenizer.json").is_file() else root
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    readable = min(config.max_position_embeddings, tokenizer.model_max_length)
    held_out = held_out_text(root, tokenizer, text, readable)
    trained_on = held_out.rows if held_out.train is None else held_out.train
    return {"rows": held_out.rows if strategy == SEARCH else trained_on, "tokenizer": tokenizer}
