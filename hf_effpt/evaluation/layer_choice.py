"""Choice of the layers of a shallower model, by its held-out loss (`search`) or by learned scores (`learn_scores`).

B rows, N layers, D hidden size, M masked positions of a row.

Fan et al. (2020, section 3.3, "Data Driven Pruning") learn a drop rate for each layer, with a fixed mean, by a softmax
over a non-linear function of the layer's activation; afterwards the k layers with the highest scores run, whatever the
input. Not given there and chosen here: the activation is the layer's mean output, the function is linear on its tanh,
k layers of each row are drawn without replacement, and the training procedure.
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_effpt.core.anatomy import first_stays, layers_of
from hf_effpt.core.depth import in_place_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.freezing import frozen
from hf_effpt.core.padding import real_tokens
from hf_effpt.models.sparse_layer import gather_rows

from .held_out_loss import held_out_loss, stock_inputs, stock_loss
from .masked_logits import evaluation_mode, stacked

logger = logging.getLogger(__name__)

ROWS = 512  # held-out rows that each choice is measured on
FEW = 64  # up to this number all choices are measured, even if greedy elimination would measure fewer
STEPS, BATCH_SIZE, LEARNING_RATE = 100, 16, 0.05  # of the training of scores


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
    with stacked(model.base_model) as stack:

        def loss(kept: tuple[int, ...]) -> float:
            if kept not in measured:
                stack.order = kept
                found = held_out_loss(model, batches)
                loss = found.total / found.masked
                measured[kept] = loss if math.isfinite(loss) else math.inf
            return math.inf if kept[0] and first_stays(stack) else measured[kept]

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


class LayerScores(nn.Module):
    """Log-scores of layers as a function of their activations; all are equal at the start."""

    def __init__(self, layers: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ND = nn.Parameter(torch.zeros(layers, hidden_size))
        self.bias_N = nn.Parameter(torch.zeros(layers))

    def forward(self, activations_BND: Tensor) -> Tensor:
        """Log-scores of shape `(rows, layers)`; the scores of a row sum to 1."""
        scores_BN = (activations_BND.tanh() * self.weight_ND).mean(dim=2) + self.bias_N
        return scores_BN.log_softmax(dim=1)


def learn_scores(
    model: PreTrainedModel, depth: int, batches: list[dict[str, Tensor]], seed: int = 0
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Learns scores on masked training rows with the model frozen; picks the `depth` layers with the highest mean.

    Returns:
        Ascending indices of the layers; and the mean `scores` of all layers, which sum to 1, and number of `steps`.
    """
    batches = [{name: tensor.to(model.device) for name, tensor in batch.items()} for batch in batches]
    noise = torch.Generator().manual_seed(seed)
    with evaluation_mode(model), frozen(model):
        activations = [activations_of(model, batch) for batch in batches]
        scores = LayerScores(*activations[0].shape[1:]).to(model.device)
        optimizer = torch.optim.Adam(scores.parameters(), lr=LEARNING_RATE)
        for step in range(STEPS):
            place = step % len(batches)
            with torch.enable_grad():
                gates_BN = draw_gates(scores(activations[place]), depth, noise)
                loss = gated_loss(model, batches[place], gates_BN)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                logger.info("data_driven: step %d of %d, loss %.4f", step, STEPS, loss.item())
        mean_N = torch.cat([scores(each) for each in activations]).exp().mean(dim=0).cpu().numpy()
    ranked_N = mean_N.copy()
    if first_stays(layers_of(model.base_model)):
        ranked_N[0] = math.inf
    kept = tuple(sorted(np.argsort(-ranked_N, kind="stable")[:depth].tolist()))
    return kept, {"scores": [round(float(score), 6) for score in mean_N], "steps": STEPS}


def draw_gates(log_scores_BN: Tensor, depth: int, noise: torch.Generator) -> Tensor:
    """1 for `depth` layers of each row, drawn in proportion to their scores without replacement, 0 for the others.

    The gradient is that of the layers' keep rates (straight-through).
    """
    uniform_BN = torch.rand(log_scores_BN.shape, generator=noise).clamp(min=1e-20).to(log_scores_BN.device)
    drawn = (log_scores_BN.detach() - (-uniform_BN.log()).log()).topk(depth, dim=1).indices
    kept_BN = torch.zeros_like(log_scores_BN).scatter(1, drawn, 1.0)
    rates_BN = rates_of(log_scores_BN, depth)
    return kept_BN + rates_BN - rates_BN.detach()


def rates_of(log_scores_BN: Tensor, depth: int) -> Tensor:
    """Keep rates of layers, at most 1: in proportion to the scores, and `depth` in sum over each row."""
    scores_BN = log_scores_BN.exp()
    rates_BN = depth * scores_BN
    for _ in range(depth):  # excess over 1 goes to the others, some of which may then exceed 1
        full_BN = rates_BN >= 1.0
        free_BN = torch.where(full_BN, 0.0, scores_BN)
        left_B1 = depth - full_BN.sum(dim=1, keepdim=True)
        shared_BN = left_B1 * free_BN / free_BN.sum(dim=1, keepdim=True).clamp(min=1e-20)
        rates_BN = torch.where(full_BN, 1.0, shared_BN)
    return rates_BN.clamp(max=1.0)


def gated_loss(model: PreTrainedModel, batch: dict[str, Tensor], gates_BN: Tensor) -> Tensor:
    """Mean loss over masked tokens with each layer's change of the rows multiplied by its gate."""
    with stacked(model.base_model) as stack:
        stack.router = _Wrapped(partial(_gated, positions_BM=batch["masked_positions"]), gates_BN.unbind(dim=1))
        return stock_loss(model, batch)


def activations_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean output of every layer over the tokens of each row without padding, `(rows, layers, hidden_size)`."""
    seen: list[Tensor] = []
    real_BL = real_tokens(batch["input_ids"], batch.get("attention_mask"), batch.get("document_ids"))
    with stacked(model.base_model) as stack:
        stack.router = _Wrapped(partial(_recorded, seen=seen, real_BL1=real_BL[:, :, None]), [None] * len(stack))
        model.base_model(**stock_inputs(model, batch))
    return torch.stack(seen, dim=1)


class _Wrapped:
    """Router that runs all rows and calls each layer as `call(layer, own, ...)`, `own` its element of `each`."""

    share, forced = 1.0, None

    def __init__(self, call: Callable[..., Tensor], each: Any) -> None:
        self._call, self._each = call, each

    def __call__(self, layers: list[Any]) -> list[Any]:
        return [in_place_of(layer, self._call, own) for own, layer in zip(self._each, layers, strict=True)]


def _gated(layer: Any, gate_B: Tensor, hidden: Tensor, *args: Any, positions_BM: Tensor, **kwargs: Any) -> Tensor:
    changed = layer(hidden, *args, **kwargs)
    if changed.shape != hidden.shape:  # the last layer, at masked positions only
        hidden = gather_rows(hidden, positions_BM)
    return hidden + gate_B[:, None, None] * (changed - hidden)


def _recorded(
    layer: Any, _: None, hidden: Tensor, *args: Any, seen: list[Tensor], real_BL1: Tensor, **kwargs: Any
) -> Tensor:
    output = layer(hidden, *args, **kwargs)
    seen.append((output * real_BL1).sum(dim=1) / real_BL1.sum(dim=1).clamp(min=1))
    return output
