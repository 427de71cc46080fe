"""Choosing the layers of a shallower model by its held-out loss."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hf_effpt.core.anatomy import layers_of, replace_layers
from hf_effpt.core.depth import LayerStack
from hf_effpt.core.errors import EffptError

from .held_out_loss import held_out_loss

logger = logging.getLogger(__name__)

ROWS = 512  # held out, that each choice is measured on
FEW = 64  # choices that are all measured, even where eliminating layers one by one would measure fewer


@contextmanager
def stacked(model: PreTrainedModel) -> Iterator[LayerStack]:
    """The layers of a stock model as a `LayerStack`, for as long as the block lasts."""
    backbone = model.base_model
    layers = layers_of(backbone)
    stack = LayerStack(layers)
    replace_layers(backbone, stack)
    try:
        yield stack
    finally:
        replace_layers(backbone, layers)


def search(
    model: PreTrainedModel, depth: int, batches: list[dict[str, Tensor]]
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The layers with the least held-out loss: of all choices where they are few, else by greedy elimination.

    Args:
        model ([`PreTrainedModel`]): stock, with a masked-language-modelling head.
        depth (`int`): number of layers to keep.
        batches: masked held-out rows.

    Returns:
        Their indices, rising, and what they were chosen by: `held_out_loss`, `held_out_loss_before` of the whole
        model, `measured`, the number of choices, and `exhaustive`, whether that is all of them.

    Raises:
        EffptError: the model has diverged, so that no choice is better than another.
    """
    measured: dict[tuple[int, ...], float] = {}
    with stacked(model) as stack:

        def loss(kept: tuple[int, ...]) -> float:
            if kept not in measured:
                stack.order = kept
                found = held_out_loss(model, batches)
                loss = found.total / found.masked
                measured[kept] = loss if math.isfinite(loss) else math.inf
            return measured[kept]

        everything = tuple(range(len(stack)))
        before = loss(everything)
        if not math.isfinite(before):
            raise EffptError("The model has diverged: its held-out loss is no number, so no layer is worth more.")
        exhaustive = _is_small(len(everything), depth)
        kept = min(combinations(everything, depth), key=loss) if exhaustive else eliminate(everything, depth, loss)
    logger.info("search: kept layers %s of %d, held-out loss %.4f", kept, len(everything), measured[kept])
    figures = {"held_out_loss": measured[kept], "held_out_loss_before": before}
    return kept, figures | {"measured": len(measured), "exhaustive": exhaustive}


def _is_small(layers: int, depth: int) -> bool:
    """Whether all choices are few, or fewer than elimination measures."""
    return math.comb(layers, depth) <= max(FEW, sum(range(depth + 1, layers + 1)))


def eliminate(kept: tuple[int, ...], depth: int, loss: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Takes out, one after the other, the layer whose loss the others bear best; of equals the topmost."""
    while len(kept) > depth:
        left = [kept[:place] + kept[place + 1 :] for place in reversed(range(len(kept)))]
        kept = min(left, key=loss)
        logger.info("search: %d layers left, held-out loss %.4f", len(kept), loss(kept))
    return kept
