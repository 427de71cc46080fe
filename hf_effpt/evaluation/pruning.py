"""Pruning of layers from a trained model (Fan et al., 2020, section 3.3)."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import hf_effpt.models
from hf_effpt.core.anatomy import check_first, layers_of, replace_layers
from hf_effpt.core.depth import every_other
from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES, objective_in, objective_of
from hf_effpt.core.registry import nearest
from hf_effpt.models.base import EffptMixin

from .held_out_loss import fixed_mask_batches
from .held_out_text import held_out_text, is_auxiliary, run_of
from .layer_choice import BATCH_SIZE, ROWS, STEPS, learn_scores, search
from .masked_logits import predicts_masked_tokens

EVERY_OTHER, SEARCH, DATA_DRIVEN = STRATEGIES = ("every_other", "search", "data_driven")


@dataclass(frozen=True)
class Pruning:
    """Choice of the layers of a model to keep.

    `kept` are ascending indices among `layers`, the model's number; `chosen_by` are the measurements behind the
    choice.
    """

    strategy: str
    layers: int
    kept: tuple[int, ...]
    chosen_by: dict[str, Any] = field(default_factory=dict)

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Copy of a stock model with these layers only."""
        pruned = copy.deepcopy(model)  # with the heads that were kept for its export
        layers = layers_of(pruned.base_model)
        check_first(layers, self.kept)
        replace_layers(pruned.base_model, nn.ModuleList(layers[index] for index in self.kept))
        for index, layer in enumerate(layers_of(pruned.base_model)):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):  # index of a decoder's key-value cache
                    module.layer_idx = index
        for config in (pruned.config, pruned.base_model.config):  # maybe the same object
            config.num_hidden_layers = len(self.kept)
            for name in ("layer_widths", "layer_types"):
                if values := getattr(model.config, name, None):
                    setattr(config, name, [values[index] for index in self.kept])
        return pruned

    def record(self) -> dict[str, Any]:
        """Entry for `run.json`."""
        return asdict(self) | {"kept": list(self.kept)}


def prune_layers(
    model: PreTrainedModel,
    depth: int,
    strategy: str = EVERY_OTHER,
    *,
    rows: Dataset | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> PreTrainedModel:
    """Copies a model as a stock model with `depth` of its layers, renumbered.

    A model trained with [`LayerDrop`] needs no further training.

    Args:
        model ([`PreTrainedModel`]): a stock model with an `encoder.layer` list, such as a BERT or an ELECTRA, or a
            training model, which is exported first.
        depth (`int`): number of layers to keep.
        strategy (`str`, *optional*, defaults to `"every_other"`): `every_other` keeps layers at equal distances from
            the first; `search` those with the least held-out loss; `data_driven` those with the highest scores, which
            are learned from their activations with the model frozen.
        rows (`Dataset`, *optional*): packed rows, as [`pack`] makes them: held-out ones for `search`, training rows
            for `data_driven`.
        tokenizer (`PreTrainedTokenizerFast`, *optional*): the one they were packed with.

    Raises:
        EffptError: the strategy is unknown, the model has fewer layers, or the strategy needs text, a tokenizer or a
            masked language model.
    """
    stock = model.export() if isinstance(model, EffptMixin) else model
    return choose_layers(stock, depth, strategy, rows=rows, tokenizer=tokenizer).apply(stock)


def choose_layers(
    model: PreTrainedModel,
    depth: int,
    strategy: str = EVERY_OTHER,
    *,
    rows: Dataset | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Pruning:
    """Chooses the layers of a stock model that [`prune_layers`] keeps; the arguments are the same."""
    layers = len(layers_of(model.base_model))
    check_pruning(depth, layers, strategy)
    if strategy == EVERY_OTHER:
        return Pruning(strategy, layers, tuple(every_other(layers, depth)))
    check_head(strategy, type(model).__name__, predicts_masked_tokens(model))
    if rows is None or tokenizer is None:
        needed = "held-out rows" if strategy == SEARCH else "training rows"
        raise EffptError(
            f"The strategy `{strategy}` chooses layers by text: pass {needed} from `pack(…)` as `rows` and their "
            "`tokenizer`, or use `every_other`."
        )
    choose, most = (search, ROWS) if strategy == SEARCH else (learn_scores, STEPS * BATCH_SIZE)
    spread = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64).tolist()  # evenly
    kept, figures = choose(model, depth, list(fixed_mask_batches(rows.select(spread), tokenizer, BATCH_SIZE)))
    return Pruning(strategy, layers, kept, figures)


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


def check_pruning(depth: int, layers: int, strategy: str) -> None:
    """Raises an `EffptError` for an unknown strategy, or a depth that the model does not have."""
    if strategy not in STRATEGIES:
        raise EffptError(f"There is no strategy `{strategy}` to choose layers: {nearest(strategy, [*STRATEGIES])}")
    if not 1 <= depth <= layers:
        raise EffptError(f"A depth of {depth} cannot be had of a model with {layers} layers; choose 1 to {layers}.")


def check_head(strategy: str, name: str, predicts: bool) -> None:
    """Raises an `EffptError` unless the model predicts masked tokens, as `strategy` needs."""
    if not predicts:
        raise EffptError(
            f"The strategy `{strategy}` needs predictions of masked tokens, and a `{name}` makes none; use "
            "`every_other`, which needs no text."
        )
