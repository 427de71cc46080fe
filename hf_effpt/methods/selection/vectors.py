"""The vectors that rows are judged by, and what the strategies that see them are built of.

N rows, D size of a vector, E networks, H hidden units and W weights of each, P rows with label 1, Q rows with label 0.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.precision import KeepsPrecision
from hf_effpt.core.random import places

from .strategy import Scorer

# Behind each vector stand its row's length in tokens, mean log unigram frequency, and share of unknown tokens.
EXTRAS = 3
MEMORY = 8192  # rows that running moments go by: embeddings and losses drift, and a share of the last counts as more
FAR = 10.0  # standard deviations at which a feature ends, so that one that was constant until now says no more


def vector_size(config: Any, scorer: Scorer | None) -> int:
    """The size of the vectors of a scorer, without the [`EXTRAS`] that stand behind them.

    Args:
        config: of the model, with `hidden_size` and, where its embeddings have another, `embedding_size`.
        scorer (`str`): `"embedding"`, `"first_layer"` or `"full"`.
    """
    narrow = getattr(config, "embedding_size", None)
    return narrow if narrow and scorer == "embedding" else config.hidden_size


def in_fp32(like: Tensor) -> AbstractContextManager:
    """A block in which no autocast makes products less precise."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


class Moments(KeepsPrecision):
    """Running mean and variance of the features of rows (Chan et al., 1979), in which old rows fade.

    Args:
        size (`int`): number of features.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def take(self, rows_ND: Tensor) -> None:
        """Takes rows in, exactly as long as there are no more than [`MEMORY`]."""
        rows_ND = rows_ND.double()
        share = len(rows_ND) / (self.count + len(rows_ND))
        mean_D = rows_ND.mean(dim=0)
        away_D = mean_D - self.mean
        self.variance.lerp_((rows_ND - mean_D).square().mean(dim=0), share)
        self.variance.add_(away_D.square() * (share * (1 - share)))
        self.mean.add_(away_D * share)
        self.count.add_(len(rows_ND)).clamp_(max=MEMORY)

    def standardised(self, rows_ND: Tensor) -> Tensor:
        """The rows less the mean in standard deviations, of the same shape, in fp32 and at most [`FAR`] from 0."""
        deviation_D = self.variance.sqrt().clamp(min=1e-6)
        return ((rows_ND.double() - self.mean) / deviation_D).clamp(-FAR, FAR).float()


class Networks(KeepsPrecision):
    """Perceptrons of one hidden layer of ReLU and one output, side by side; buffers, which no optimizer of a run sees.

    Args:
        members (`int`): number of networks.
        size (`int`): of their inputs.
        hidden (`int`): units of each.
    """

    values: Tensor  # all weights of a network in one row, so that learning is a few operations in all

    def __init__(self, members: int, size: int, hidden: int) -> None:
        super().__init__()
        self.shapes = ((size, hidden), (hidden,), (hidden,), ())
        self.sizes = [size * hidden, hidden, hidden, 1]
        self.register_buffer("values", torch.zeros(members, sum(self.sizes), dtype=torch.float32))

    def split(self, values_EW: Tensor) -> list[Tensor]:
        """Views of what belongs to the hidden layer's weights and biases, and the output's, each of all members."""
        parts = values_EW.split(self.sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @property
    def weights(self) -> list[Tensor]:
        """What learns."""
        return self.split(self.values)

    @torch.no_grad()
    def draw(self, seed: int, salt: int) -> None:
        """Draws the weights as `nn.Linear` does, from no generator."""
        for index, weight in enumerate(self.weights):
            inputs = self.shapes[0][0 if index < 2 else 1]
            weight.copy_((2 * places(weight, seed, salt, index) - 1) * inputs**-0.5)

    @torch.no_grad()
    def forward(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs for the rows, of shape `(members, rows)`, and the hidden layer, `(members, rows, hidden)`."""
        first_EDH, bias_EH, last_EH, offset_E = self.weights
        with in_fp32(rows_ND):
            hidden_ENH = (rows_ND @ first_EDH + bias_EH[:, None]).relu()
            return (hidden_ENH @ last_EH[:, :, None])[..., 0] + offset_E[:, None], hidden_ENH

    @torch.no_grad()
    def gradients(self, rows_ND: Tensor, hidden_ENH: Tensor, slopes_EN: Tensor) -> Tensor:
        """The gradients of a loss as to `values`, from those as to the outputs."""
        with in_fp32(rows_ND):
            slopes_ENH = slopes_EN[..., None] * self.weights[2][:, None] * (hidden_ENH > 0)
            last_EH = (slopes_EN[:, None] @ hidden_ENH)[:, 0]
            parts = (rows_ND.T @ slopes_ENH, slopes_ENH.sum(dim=1), last_EH, slopes_EN.sum(dim=1, keepdim=True))
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def area_under_curve(scores_P: Tensor, scores_Q: Tensor, weights_P: Tensor, weights_Q: Tensor) -> Tensor:
    """How probable it is that a row with label 1 scores higher than one with label 0, ties as one half; fp64.

    Args:
        scores_P, scores_Q (`Tensor` of shape `(rows,)`): of the rows with label 1, and of those with label 0.
        weights_P, weights_Q (`Tensor` of those shapes): whether a row counts; with no row on a side it is 0.
    """
    sorted_Q, order_Q = scores_Q.sort()
    # of whole numbers: a sum along fractions is not deterministic on every device
    below_Q = torch.nn.functional.pad(weights_Q[order_Q].long().cumsum(0), (1, 0))
    least_P, most_P = (below_Q[torch.searchsorted(sorted_Q, scores_P, right=right)] for right in (False, True))
    pairs = weights_P.sum(dtype=torch.float64) * weights_Q.sum(dtype=torch.float64)
    return ((least_P + most_P) * weights_P).sum() / 2 / pairs.clamp(min=1)
