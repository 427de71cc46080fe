"""Committee of small networks that learns to predict the losses of rows.

N rows, D features, E members, H hidden units and W weights of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import exp, factorial
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_effpt.core.random import places, salted, uniform
from hf_effpt.core.shares import part_of
from hf_effpt.methods.selection.picking import UNIFORM, chance
from hf_effpt.methods.selection.pool import Pool
from hf_effpt.methods.selection.strategy import BY_SCORE, ResolvedSettings, Strategy
from hf_effpt.methods.selection.vectors import EXTRAS, Moments, Networks, vector_size

HIDDEN = 32
RATE = 0.01  # learning rate
SUBSPACE = 0.8  # share of the features that a member sees
BETA = 1.0  # standard deviations of the upper confidence bound above the mean
TRUSTED = 0.2  # rank correlation from which predictions are used
RECENT = 0.1  # least weight of a new value in a running average
STEEPEST = 5.0  # largest norm of a member's gradient; a single row of many features would make it overshoot
_WEIGHTS, _FEATURES, _BOOTSTRAP = range(0xE25E8B1E, 0xE25E8B1E + 3)
# Cumulative probabilities of a Poisson distribution with mean 1; less than one in 10 ** 6 lies above the last.
_POISSON = list(accumulate(exp(-1.0) / factorial(count) for count in range(9)))


class PerceptronEnsemble(Strategy):
    """Predicts the loss of a row by five small networks, without a forward pass (in the way of Ouyang et al., 2022).

    The networks differ in their initial weights, the features they see, and the number of times each row counts, which
    is drawn from a Poisson distribution. After each optimizer step they take one step of gradient descent on the
    standardised losses of its rows. Before that they predict those losses: while the recent rank correlation of
    prediction and loss is below 0.2, rows are picked at random.

    Rules: `"mean"`, the predicted loss; `"ucb"`, that plus one standard deviation of the members; `"vote"`, the share
    of the members that predict more than the recent median loss, of equal shares the higher mean; `"agreement"`, the
    standard deviation of the members.
    """

    input_kind = "vectors"
    remembers = True
    scorers = ("embedding", "first_layer")
    rules = ("mean", "ucb", "vote", "agreement")
    settings = (*BY_SCORE, "members")
    defaults: ClassVar = {"warmup": 200}

    subspace: Tensor
    steps: Tensor
    median: Tensor
    correlation: Tensor

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        super().__init__(resolved, config)
        features = vector_size(config, resolved.scorer) + EXTRAS
        self.networks = Networks(resolved.members, features, HIDDEN)
        self.features, self.losses = Moments(features), Moments(1)
        self.register_buffer("subspace", torch.zeros(resolved.members, features, dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("median", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("correlation", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        super().draw(seed)
        self.networks.draw(seed, _WEIGHTS)
        ranks_ED = places(self.subspace, seed, _FEATURES).argsort(dim=1).argsort(dim=1)
        self.subspace.copy_(ranks_ED < part_of(SUBSPACE, ranks_ED.shape[1]))
        self.networks.weights[0].mul_(self.subspace[..., None])

    @torch.no_grad()
    def predict(self, pool: Pool) -> Tensor:
        """Standardised losses that the members predict, of shape `(members, rows)`."""
        return self.networks(self.features.standardised(pool.seen))[0]

    @torch.no_grad()
    def judge(self, pool: Pool) -> Tensor:
        """Scores by the rule, of shape `(rows,)`, without regard to the rank correlation."""
        losses_EN = self.predict(pool)
        mean_N, deviation_N = losses_EN.mean(dim=0), losses_EN.std(dim=0, correction=0)
        if self.resolved.rule == "ucb":
            return mean_N + BETA * deviation_N
        if self.resolved.rule == "vote":  # five members leave many ties
            return (losses_EN > self.losses.standardised(self.median)).float().mean(dim=0) + 1e-3 * mean_N.sigmoid()
        return deviation_N if self.resolved.rule == "agreement" else mean_N

    @torch.no_grad()
    def scores(self, pool: Pool) -> Tensor:
        return torch.where(self.correlation < TRUSTED, chance(pool, UNIFORM), self.judge(pool).double())

    @torch.no_grad()
    def learn(self, pool: Pool, losses_N: Tensor) -> None:
        recent = (1.0 / (self.steps + 1)).clamp(min=RECENT)
        found = rank_correlation(self.predict(pool).mean(dim=0), losses_N)
        self.correlation.lerp_(found, torch.where(losses_N.amin() < losses_N.amax(), recent, 0.0).double())
        self.median.lerp_(losses_N.double().sort().values[(len(losses_N) - 1) // 2], recent.double())
        self.steps += 1
        self.features.take(pool.seen)
        self.losses.take(losses_N[:, None])
        self._descend(pool, self.losses.standardised(losses_N[:, None])[:, 0])

    def _descend(self, pool: Pool, target_N: Tensor) -> None:
        """Takes one step on the mean squared error of the rows that each member has drawn."""
        rows_ND = self.features.standardised(pool.seen)
        counts_EN = draws(pool, self.resolved.members)
        losses_EN, hidden_ENH = self.networks(rows_ND)
        slopes_EN = 2 * counts_EN * (losses_EN - target_N) / counts_EN.sum(dim=1, keepdim=True).clamp(min=1)
        gradients_EW = self.networks.gradients(rows_ND, hidden_ENH, slopes_EN)
        self.networks.split(gradients_EW)[0].mul_(self.subspace[..., None])
        norms_E1 = torch.linalg.vector_norm(gradients_EW, dim=1, keepdim=True)
        self.networks.values.sub_(gradients_EW * (RATE * STEEPEST / norms_E1.clamp(min=STEEPEST)))

    def sums(self) -> dict[str, Tensor]:
        return {"selection_correlation": self.correlation, "selection_correlation_steps": torch.ones(())}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """`selection_correlation`, the rank correlation of predicted and true losses over about the last ten steps."""
        steps = sums.get("selection_correlation_steps")
        return {"selection_correlation": sums["selection_correlation"] / steps} if steps else {}


def draws(pool: Pool, members: int) -> Tensor:
    """Number of times each row counts for each member, of shape `(members, rows)`, in fp32.

    It is Poisson-distributed with mean 1, a pure function of row, seed, step and member (online bagging; Oza and
    Russell, 2001).
    """
    keys_N = salted(pool.keys_N, pool.seed, pool.step, _BOOTSTRAP)
    uniform_EN = uniform(keys_N + torch.arange(members, device=keys_N.device)[:, None])
    return torch.stack([uniform_EN >= bound for bound in _POISSON]).sum(dim=0).float()


def rank_correlation(one_N: Tensor, other_N: Tensor) -> Tensor:
    """Spearman's rank correlation of two sequences, a scalar in fp64; 0 if one of them is constant."""
    one_N, other_N = _centred_ranks(one_N), _centred_ranks(other_N)
    norm = (one_N.square().sum() * other_N.square().sum()).sqrt()
    return (one_N * other_N).sum() / norm.clamp(min=0.25)  # ranks are multiples of one half


def _centred_ranks(values_N: Tensor) -> Tensor:
    """Ranks minus their mean; equal values share a mean rank."""
    values_N = values_N.contiguous()
    sorted_N = values_N.sort().values
    below_N, up_to_N = (torch.searchsorted(sorted_N, values_N, right=right) for right in (False, True))
    return (below_N + up_to_N - len(values_N)).double() / 2
