"""Depth on demand: a trained model with fewer of its layers (Fan et al., 2020, section 3.3)."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_effpt.core.anatomy import layers_of, replace_layers
from hf_effpt.core.depth import every_other
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest
from hf_effpt.models.base import EffptMixin

from .layer_scores import BATCH_SIZE, STEPS, learn_scores
from .layer_search import ROWS, search
from .loss import fixed_mask_batches
from .masked_logits import predicts_masked_tokens

EVERY_OTHER, SEARCH, DATA_DRIVEN = STRATEGIES = ("every_other", "search", "data_driven")


@dataclass(frozen=True)
class Pruning:
    """Which layers of a model are kept.

    Args:
        strategy (`str`): how they were chosen.
        layers (`int`): how many the model has.
        kept (`tuple[int, ...]`): indices of those that are kept, rising.
        chosen_by (`dict[str, Any]`): the figures behind the choice.
    """

    strategy: str
    layers: int
    kept: tuple[int, ...]
    chosen_by: dict[str, Any] = field(default_factory=dict)

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of a stock model with these layers only."""
        pruned = copy.deepcopy(model)
        layers = layers_of(pruned.base_model)
        replace_layers(pruned.base_model, nn.ModuleList(layers[index] for index in self.kept))
        for index, layer in enumerate(layers_of(pruned.base_model)):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):  # where a decoder would cache its keys and values
                    module.layer_idx = index
        for config in (pruned.config, pruned.base_model.config):  # which may be one and the same
            config.num_hidden_layers = len(self.kept)
            if widths := getattr(model.config, "layer_widths", None):
                config.layer_widths = [widths[index] for index in self.kept]
        return pruned

    def record(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        return asdict(self) | {"kept": list(self.kept)}


def prune_layers(
    model: PreTrainedModel,
    depth: int,
    strategy: str = EVERY_OTHER,
    *,
    rows: Dataset | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> PreTrainedModel:
    """A stock model with `depth` of the layers of `model`, renumbered; `model` stays as it is.

    A model that was trained with [`LayerDrop`] bears it without further training.

    Args:
        model ([`PreTrainedModel`]): a stock model with an `encoder.layer` list, such as a BERT or an ELECTRA, or a
            training model, which is exported first.
        depth (`int`): number of layers to keep.
        strategy (`str`, *optional*, defaults to `"every_other"`): `every_other` keeps layers at equal distances, the
            first among them; `search` those with the least held-out loss; `data_driven` those that score highest by
            what is learned of their activations, with the model frozen.
        rows (`Dataset`, *optional*): packed rows, as [`pack`] makes them: for `search` held-out ones, for
            `data_driven` training rows.
        tokenizer (`PreTrainedTokenizerFast`, *optional*): the one they were packed with.

    Raises:
        EffptError: there is no such strategy, the model does not have as many layers, or what the strategy needs of
            text, tokenizer and head over the vocabulary is missing.
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
    """Which layers [`prune_layers`] keeps of a stock model; the arguments are the same."""
    layers = len(layers_of(model.base_model))
    check_pruning(depth, layers, strategy)
    if strategy == EVERY_OTHER:
        return Pruning(strategy, layers, tuple(every_other(layers, depth)))
    check_head(strategy, type(model).__name__, predicts_masked_tokens(model))
    if rows is None or tokenizer is None:
        needed = "held-out rows" if strategy == SEARCH else "training rows"
        raise EffptError(
            f"The strategy `{strategy}` chooses layers by text: pass {needed} from `pack(…)` as `rows` and the "
            "`tokenizer` that they were packed with, or use `every_other`."
        )
    if strategy == SEARCH:
        kept, figures = search(model, depth, list(_batches(rows, tokenizer, ROWS)))
    else:
        kept, figures = learn_scores(model, depth, list(_batches(rows, tokenizer, STEPS * BATCH_SIZE)))
    return Pruning(strategy, layers, tuple(kept), figures)


def check_pruning(depth: int, layers: int, strategy: str) -> None:
    """Raises an `EffptError` unless there is such a strategy, and the model has as many layers."""
    if strategy not in STRATEGIES:
        raise EffptError(f"There is no strategy `{strategy}` to choose layers: {nearest(strategy, [*STRATEGIES])}")
    if not 1 <= depth <= layers:
        raise EffptError(f"A depth of {depth} cannot be had of a model with {layers} layers; choose 1 to {layers}.")


def check_head(strategy: str, name: str, predicts: bool) -> None:
    """Raises an `EffptError` unless a model predicts masked tokens, by which layers can be chosen."""
    if not predicts:
        raise EffptError(
            f"The strategy `{strategy}` needs predictions of masked tokens, and a `{name}` makes none; use "
            "`every_other`, which needs no text."
        )


def _batches(rows: Dataset, tokenizer: PreTrainedTokenizerFast, most: int) -> Iterator[dict[str, Tensor]]:
    """Batches of up to `most` of the rows, spread evenly, with the fixed masks of every evaluation."""
    spread: Sequence[int] = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64).tolist()
    return fixed_mask_batches(rows.select(spread), tokenizer, BATCH_SIZE)
