"""Choice of the layers of a shallower model by its held-out loss."""

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

ROWS = 512  # held-out rows that each choice is measured on
FEW = 64  # up to this number all choices are measured, even if greedy elimination would measure fewer


@contextmanager
def stacked(model: PreTrainedModel) -> Iterator[LayerStack]:
    """Makes the layers of a stock model a `LayerStack` for as long as the block lasts."""
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
    """Finds the layers with the least held-out loss: among all choices if they are few, else by greedy elimination.

    `model` is a stock masked language model, `batches` are masked held-out rows. Raises an `EffptError` if the model
    has diverged.

    Returns:
        Ascending indices of `depth` layers; and the reasons: `held_out_loss`, `held_out_loss_before` of the whole
        model, `measured`, the number of choices measured, and `exhaustive`, `True` if these are all choices.
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
            raise EffptError("The model has diverged: its held-out loss is not finite; use an earlier checkpoint.")
        greedy = sum(range(depth + 1, len(everything) + 1))  # choices that elimination measures
        exhaustive = math.comb(len(everything), depth) <= max(FEW, greedy)
        kept = min(combinations(everything, depth), key=loss) if exhaustive else eliminate(everything, depth, loss)
    logger.info("search: kept layers %s of %d, held-out loss %.4f", kept, len(everything), measured[kept])
    figures = {"held_out_loss": measured[kept], "held_out_loss_before": before}
    return kept, figures | {"measured": len(measured), "exhaustive": exhaustive}


def eliminate(kept: tuple[int, ...], depth: int, loss: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Removes layers one by one, each time the one whose removal gives the least loss; of equals the topmost."""
    while len(kept) > depth:
        left = [kept[:place] + kept[place + 1 :] for place in reversed(range(len(kept)))]
        kept = min(left, key=loss)
        logger.info("search: %d layers left, held-out loss %.4f", len(kept), loss(kept))
    return kept
