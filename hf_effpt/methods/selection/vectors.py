"""Building blocks of strategies that see row vectors.

N rows, D size of a vector, E networks, H hidden units and W weights of each, P rows with label 1, Q rows with label 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.precision import KeepsPrecision, without_autocast
from hf_effpt.core.random import places

from .pool import Pool, push
from .strategy import BY_SCORE, ResolvedSettings, Scorer, Strategy

EXTRAS = 3  # features appended to each vector: length in tokens, mean log unigram frequency, share of unknown tokens
MEMORY = 8192  # rows after which old ones fade from running moments, since the model changes
FAR = 10.0  # standard deviations at which features are clipped, such as formerly constant ones


def vector_size(config: Any, scorer: Scorer | None) -> int:
    """Size of the vectors of a scorer, without the `EXTRAS`."""
    narrow = getattr(config, "embedding_size", None)
    return narrow if narrow and scorer == "embedding" else config.hidden_size


class QueueStrategy(Strategy):
    """Strategy by row vectors, with a queue of those that were trained on recently; each takes `width` numbers."""

    input_kind = "vectors"
    remembers = True
    scorers = ("embedding", "first_layer", "full")
    modes = ("topk",)
    settings = (*BY_SCORE, "queue")

    queue: Tensor
    size: Tensor
    place: Tensor

    def __init__(self, resolved: ResolvedSettings, config: Any, width: int) -> None:
        super().__init__(resolved, config)
        self.length = vector_size(config, resolved.scorer)
        self.register_buffer("queue", torch.zeros(resolved.queue, width, dtype=torch.float32))
        self.register_buffer("size", torch.zeros((), dtype=torch.long))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def vectors(self, pool: Pool) -> Tensor:
        """Vectors of rows, of shape `(rows, size)`, without the `EXTRAS`."""
        return pool.seen[:, : self.length].float()

    def append(self, rows_ND: Tensor) -> None:
        """Appends rows to the queue."""
        push(self.queue, self.size, self.place, rows_ND)


class Moments(KeepsPrecision):
    """Running mean and variance of `size` features (Chan et al., 1979); after `MEMORY` rows, old rows fade."""

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
        """Updates the moments with rows."""
        rows_ND = rows_ND.double()
        share = len(rows_ND) / (self.count + len(rows_ND))
        mean_D = rows_ND.mean(dim=0)
        away_D = mean_D - self.mean
        self.variance.lerp_((rows_ND - mean_D).square().mean(dim=0), share)
        self.variance.add_(away_D.square() * (share * (1 - share)))
        self.mean.add_(away_D * share)
        self.count.add_(len(rows_ND)).clamp_(max=MEMORY)

    def standardised(self, rows_ND: Tensor) -> Tensor:
        """Standardises rows, in fp32, clipped to `FAR` standard deviations."""
        deviation_D = self.variance.sqrt().clamp(min=1e-6)
        return ((rows_ND.double() - self.mean) / deviation_D).clamp(-FAR, FAR).float()


class Networks(KeepsPrecision):
    """Perceptrons with one hidden ReLU layer and one output, computed together; their weights are in a buffer."""

    values: Tensor  # one row per network, so that learning takes few operations

    def __init__(self, members: int, size: int, hidden: int) -> None:
        super().__init__()
        self.shapes = ((size, hidden), (hidden,), (hidden,), ())
        self.sizes = [size * hidden, hidden, hidden, 1]
        self.register_buffer("values", torch.zeros(members, sum(self.sizes), dtype=torch.float32))

    def split(self, values_EW: Tensor) -> list[Tensor]:
        """Views of the weights and biases of the hidden layer and of the output, each of all members."""
        parts = values_EW.split(self.sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @property
    def weights(self) -> list[Tensor]:
        """Weights and biases."""
        return self.split(self.values)

    @torch.no_grad()
    def draw(self, seed: int, salt: int) -> None:
        """Initialises the weights as `nn.Linear` does, without a generator."""
        for index, weight in enumerate(self.weights):
            inputs = self.shapes[0][0 if index < 2 else 1]
            weight.copy_((2 * places(weight, seed, salt, index) - 1) * inputs**-0.5)

    @torch.no_grad()
    def forward(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Returns outputs, of shape `(members, rows)`, and hidden units, of shape `(members, rows, hidden)`."""
        first_EDH, bias_EH, last_EH, offset_E = self.weights
        with without_autocast(rows_ND):
            hidden_ENH = (rows_ND @ first_EDH + bias_EH[:, None]).relu()
            return (hidden_ENH @ last_EH[:, :, None])[..., 0] + offset_E[:, None], hidden_ENH

    @torch.no_grad()
    def gradients(self, rows_ND: Tensor, hidden_ENH: Tensor, slopes_EN: Tensor) -> Tensor:
        """Gradients with respect to `values`, from those with respect to the outputs."""
        with without_autocast(rows_ND):
            slopes_ENH = slopes_EN[..., None] * self.weights[2][:, None] * (hidden_ENH > 0)
            last_EH = (slopes_EN[:, None] @ hidden_ENH)[:, 0]
            parts = (rows_ND.T @ slopes_ENH, slopes_ENH.sum(dim=1), last_EH, slopes_EN.sum(dim=1, keepdim=True))
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def area_under_curve(scores_P: Tensor, scores_Q: Tensor, weights_P: Tensor, weights_Q: Tensor) -> Tensor:
    """Probability, in fp64, that a row with label 1 (P) scores higher than one with label 0 (Q); ties count one half.

    Weights are 1 for rows that count, else 0; without any the result is 0.
    """
    sorted_Q, order_Q = scores_Q.sort()
    # Whole numbers: a cumulative sum of fractions is not deterministic on every device.
    below_Q = torch.nn.functional.pad(weights_Q[order_Q].long().cumsum(0), (1, 0))
    least_P, most_P = (below_Q[torch.searchsorted(sorted_Q, scores_P, right=right)] for right in (False, True))
    pairs = weights_P.sum(dtype=torch.float64) * weights_Q.sum(dtype=torch.float64)
    return ((least_P + most_P) * weights_P).sum() / 2 / pairs.clamp(min=1)
