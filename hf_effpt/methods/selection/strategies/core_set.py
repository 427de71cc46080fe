"""Core-set: rows that are far from those trained on recently, and from one another.

N rows of a pool, C centres, Q places of the queue, D size of a vector.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_effpt.core.precision import without_autocast
from hf_effpt.core.random import places
from hf_effpt.core.shares import part_of
from hf_effpt.methods.selection.picking import fill_up
from hf_effpt.methods.selection.pool import Pool
from hf_effpt.methods.selection.strategy import ResolvedSettings
from hf_effpt.methods.selection.vectors import QueueStrategy, vector_size

WIDTH = 64  # size that longer vectors are projected to
_PROJECTION = 0xC04E5E7


def k_centre(
    points_ND: Tensor,
    number: int,
    centres_CD: Tensor | None = None,
    outliers: float = 0.0,
    real_C: Tensor | None = None,
) -> Tensor:
    """Greedy k-centre: repeatedly picks the point farthest from its nearest centre (Sener and Savarese, 2018).

    Without centres, the first pick is the point farthest from the mean. Of equally far points the first is picked.
    Returns the indices of the `number` points in the order of the picks.

    Args:
        outliers (`float`, *optional*, defaults to 0.0): share of the points, in [0, 1), that is not picked: those
            farthest from their nearest centre, or without centres from the mean.
        real_C (`Tensor` of shape `(centres,)`, *optional*): `False` for centres to ignore.
    """
    points_ND, total = points_ND.float(), len(points_ND)
    nearest_N = points_ND.new_full((total,), torch.inf)
    if centres_CD is not None and len(centres_CD):
        nearest_N = _nearest(points_ND, centres_CD.float(), real_C)
    spread_N = torch.where(nearest_N.isinf(), _squares_from(points_ND, points_ND.mean(dim=0)), nearest_N)
    barred_N = torch.zeros(total, dtype=torch.bool, device=points_ND.device)
    left_out = min(total - number, part_of(outliers, total))
    barred_N[spread_N.argsort(stable=True)[total - left_out :]] = True
    picked = [torch.empty(0, dtype=torch.long, device=points_ND.device)]
    for turn in range(number):
        farness_N = nearest_N if turn else spread_N
        at = farness_N.masked_fill(barred_N, -1.0).argmax(dim=0, keepdim=True)
        picked.append(at)
        barred_N[at] = True
        nearest_N = torch.minimum(nearest_N, _squares_from(points_ND, points_ND.index_select(0, at)))
    return torch.cat(picked)


class CoreSet(QueueStrategy):
    """Picks rows with vectors far from those trained on recently, and from each other (Sener and Savarese, 2018).

    Vectors are divided by their length and, if longer, projected to 64 numbers by fixed random signs, which roughly
    keeps distances. The farthest rows are often noise: a share `outliers` is left out. With an empty queue the first
    pick is the row farthest from the mean.
    """

    defaults: ClassVar = {"queue": 1024, "outliers": 0.02, "explore": 0.1}
    projection: Tensor

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        super().__init__(resolved, config, min(vector_size(config, resolved.scorer), WIDTH))
        if self.length > WIDTH:
            self.register_buffer("projection", torch.zeros(self.length, WIDTH, dtype=torch.float32))

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        super().draw(seed)
        if self.length > WIDTH:
            signs = (places(self.projection, seed, _PROJECTION) < 0.5).float() * 2 - 1
            self.projection.copy_(signs * WIDTH**-0.5)

    @torch.no_grad()
    def points(self, pool: Pool) -> Tensor:
        """Normalised and projected vectors, of shape `(rows, min(size, 64))`."""
        points_ND = F.normalize(self.vectors(pool))
        if self.length <= WIDTH:
            return points_ND
        with without_autocast(points_ND):
            return points_ND @ self.projection

    @torch.no_grad()
    def pick(self, pool: Pool, number: int) -> Tensor:
        wanted = number - min(number, part_of(self.resolved.explore, number))
        order_N = pool.ids_N.argsort(stable=True)
        points_ND = self.points(pool.of(order_N))
        real_Q = torch.arange(len(self.queue), device=self.queue.device) < self.size
        picked = k_centre(points_ND, wanted, self.queue, outliers=self.resolved.outliers, real_C=real_Q)
        return fill_up(order_N[picked], pool, number)

    def learn(self, pool: Pool, losses_N: Tensor) -> None:
        self.append(self.points(pool))


def _squares_from(points_ND: Tensor, centre_D: Tensor) -> Tensor:
    return (points_ND - centre_D).square().sum(dim=1)


def _nearest(points_ND: Tensor, centres_CD: Tensor, real_C: Tensor | None) -> Tensor:
    """Squared distance of each point from the nearest real centre; infinite if there is none."""
    with without_autocast(points_ND):
        products_NC = points_ND @ centres_CD.T
    squares_N, squares_C = points_ND.square().sum(dim=1), centres_CD.square().sum(dim=1)
    squares_NC = (squares_N[:, None] + squares_C - 2 * products_NC).clamp(min=0.0)  # rounding may make it negative
    return (squares_NC if real_C is None else squares_NC.masked_fill(~real_C, torch.inf)).amin(dim=1)
