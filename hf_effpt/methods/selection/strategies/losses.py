"""Strategies by the losses of rows, and the random one.

N rows of a pool, Q places of the queue.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_effpt.core.processes import gather
from hf_effpt.methods.selection.picking import PRUNED, UNIFORM, by_score, chance, sample
from hf_effpt.methods.selection.pool import Pool, push
from hf_effpt.methods.selection.strategy import BY_SCORE, ResolvedSettings, Strategy

PRESSURE = 100.0  # initial ratio of the probabilities of the first and the last rank (Loshchilov and Hutter, 2015)
EVERYWHERE = {"start": 0.0, "end": 1.0, "interrupt": 0}


class Random(Strategy):
    """Picks rows at random: the control that every other strategy has to beat."""

    input_kind = "nothing"
    defaults: ClassVar[Mapping[str, Any]] = {"explore": 0.0}

    def scores(self, pool: Pool) -> Tensor:
        return chance(pool, UNIFORM)


class HighestLoss(Strategy):
    """Picks the rows of the highest loss, or draws them by its rank (`mode`; MosaicML Composer)."""

    input_kind = "losses"
    scorers = ("full", "first_layer", "generator", "stale")


class SelectiveBackprop(Strategy):
    """Picks rows with a probability that rises with the rank of their loss among recent ones (Jiang et al., 2019).

    The probability is the share of those losses that are not above it, to the power of 1 / keep - 1: 1 for half of the
    rows, 2 for a third.
    """

    input_kind = "losses"
    scorers = ("full", "first_layer", "generator", "stale")
    modes = ("rank_sample",)
    settings = ("queue",)
    defaults: ClassVar[Mapping[str, Any]] = {"explore": 0.0, "queue": 5000}
    remembers = True
    history: Tensor
    size: Tensor
    place: Tensor

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        super().__init__(resolved, config)
        self.register_buffer("history", torch.zeros(resolved.queue, dtype=torch.float32))
        self.register_buffer("size", torch.zeros((), dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def pick(self, pool: Pool, number: int) -> Tensor:
        losses_N = pool.seen.float()
        if self.resolved.scorer != "stale":
            push(self.history, self.size, self.place, gather(losses_N))
        taken_Q = torch.arange(len(self.history), device=losses_N.device) < self.size
        weights_N = percentile(losses_N, self.history, taken_Q) ** (1.0 / self.resolved.keep - 1.0)
        return sample(weights_N, pool, number)

    def learn(self, pool: Pool, losses_N: Tensor) -> None:
        if self.resolved.scorer == "stale":  # some rows of the pool have no loss
            push(self.history, self.size, self.place, losses_N)


def percentile(losses_N: Tensor, history_Q: Tensor, taken_Q: Tensor) -> Tensor:
    """Share of the losses in the history, at places `taken_Q`, that are not above each loss, of shape `(rows,)`."""
    below_NQ = (history_Q <= losses_N[:, None]) & taken_Q
    return below_NQ.sum(dim=1).double() / taken_Q.sum().clamp(min=1)


class LossRank(Strategy):
    """Picks rows with a probability that falls exponentially with the rank of the loss (Loshchilov and Hutter, 2015).

    At first the highest loss is 100 times as likely as the lowest; at the end all are equally likely.
    """

    input_kind = "losses"
    scorers = ("stale", "full", "first_layer", "generator")
    modes, settings = ("rank_sample",), ()
    defaults: ClassVar[Mapping[str, Any]] = {"explore": 0.0}

    def pick(self, pool: Pool, number: int) -> Tensor:
        order_N = by_score(pool.seen, pool)
        ranks_N = torch.arange(len(pool), device=order_N.device, dtype=torch.float64)
        pressure = math.log(PRESSURE) * (1.0 - pool.fraction)
        weights_N = torch.empty_like(ranks_N).scatter_(0, order_N, torch.exp(-pressure * ranks_N / len(pool)))
        return sample(weights_N, pool, number)


class Rho(Strategy):
    """Picks the rows whose loss is furthest above that of a model trained on held-out text (Mindermann et al., 2022).

    Rows that neither model can predict are noise; rows that this model predicts well are learned already.
    """

    input_kind = "losses"
    scorers = ("full",)
    settings = (*BY_SCORE, "holdout", "table")
    compares, mlm_only = "rows", True


class InfoBatch(Strategy):
    """Leaves out some of the rows with a loss below the mean; the rest of those weigh more (Qin et al., 2023).

    As published, each of them is left out with probability r, and the rest have the weight 1 / (1 - r). Here a step
    has a fixed number of rows, from which r follows. The expected sum of the losses is that of the whole pool. If
    there is no room for a row below the mean, rows are drawn uniformly.
    """

    input_kind = "losses"
    scorers = ("stale",)
    modes, settings = ("topk",), ()
    defaults: ClassVar[Mapping[str, Any]] = {"keep": 0.75, "explore": 0.0, "start": 0.0, "end": 0.875, "interrupt": 0}
    mean = math.inf  # mean of the remembered losses, set by `Selection`

    def pick(self, pool: Pool, number: int) -> Tensor:
        easy_N = prunable(pool.seen, self.mean)
        hard = len(pool) - easy_N.sum()
        fits = hard < number
        keys_N = chance(pool, PRUNED) + torch.where(fits & ~easy_N, 2.0, 0.0)
        kept_N = by_score(keys_N, pool)[:number].sort().values
        up = (len(pool) - hard) / (number - hard).clamp(min=1)
        share = number / len(pool)
        self._weights_N = torch.where(fits, torch.where(easy_N, up * share, share), 1.0).float()
        return kept_N

    def loss_weight_inputs(self, pool: Pool, kept_N: Tensor) -> Tensor:
        return self._weights_N[kept_N]

    def loss_weights(self, losses: Any, pool: Pool) -> Tensor | None:
        return None if losses.weight_inputs is None else losses.weight_inputs[losses.row_N]


def prunable(losses_N: Tensor, mean: Tensor | float) -> Tensor:
    """Mask of the rows that may be left out, those with a loss below the mean."""
    return losses_N < mean
