"""Choice of rows by score; ties and random numbers depend on the rows, not on their order.

N rows of a pool.
"""

from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.random import salted, uniform
from hf_effpt.core.shares import part_of

from .pool import Pool

# Streams of random numbers in a step.
UNIFORM, RANKED, TIES, PRUNED = range(0x5E1EC7, 0x5E1EC7 + 4)


def chance(pool: Pool, what: int) -> Tensor:
    """Random float64 numbers in [0, 1), of shape `(N,)`: a pure function of seed, step and row."""
    return uniform(salted(pool.keys_N, pool.seed, pool.step, what))


def by_score(scores_N: Tensor, pool: Pool) -> Tensor:
    """Positions of the rows by falling score; among equals, the lower id is first."""
    by_id_N = pool.ids_N.argsort(stable=True)
    return by_id_N[scores_N[by_id_N].argsort(descending=True, stable=True)]


def rank_weights(number: int, keep: float, device: torch.device | None = None) -> Tensor:
    """Sampling weights of rows from the lowest score to the highest, with a sum of 1.

    That of rank j of N is proportional to ((j + 1/2) / N) ** (1 / keep - 1) (selective backprop of MosaicML Composer).
    """
    ranks_N = (torch.arange(number, dtype=torch.float64, device=device) + 0.5) / number
    weights_N = ranks_N ** (1.0 / keep - 1.0)
    return weights_N / weights_N.sum()


def sample(weights_N: Tensor, pool: Pool, number: int, what: int = RANKED) -> Tensor:
    """Positions of `number` rows drawn without replacement, in rising order (Efraimidis and Spirakis, 2006)."""
    races_N = chance(pool, what).clamp(min=2.0**-60).log() / weights_N.double().clamp(min=1e-300)
    return by_score(races_N, pool)[:number].sort().values


def choose(scores_N: Tensor, pool: Pool, number: int, resolved: Any) -> Tensor:
    """Positions of `number` rows by their scores, in rising order.

    High scores are preferred. The share `explore` of the rows is drawn uniformly; the share `outliers` of the pool
    with the highest scores is picked by that draw only. `resolved` gives both, `mode` and `keep`.
    """
    explored = min(number, part_of(resolved.explore, number))
    left_out = min(len(pool) - number, part_of(resolved.outliers, len(pool)))
    order_N = by_score(scores_N, pool)
    if resolved.mode == "topk":
        return fill_up(order_N[left_out : left_out + number - explored], pool, number)
    wanted_N = torch.zeros(len(pool), dtype=torch.float64, device=scores_N.device)
    wanted_N[order_N] = _wanted(scores_N[order_N], resolved)
    wanted_N[order_N[:left_out]] = 0.0
    return fill_up(sample(wanted_N, pool, number - explored), pool, number)


def fill_up(picked: Tensor, pool: Pool, number: int) -> Tensor:
    """Adds uniformly drawn rows to the distinct positions `picked` until there are `number`, in rising order."""
    if len(picked) == number:
        return picked.sort().values
    rest_N = chance(pool, UNIFORM)
    rest_N[picked] = -1.0
    return torch.cat([picked, by_score(rest_N, pool)[: number - len(picked)]]).sort().values


def _wanted(sorted_N: Tensor, resolved: Any) -> Tensor:
    """Sampling weights of rows from the highest score to the lowest."""
    if resolved.mode == "weighted":
        low, high = sorted_N[-1].double(), sorted_N[0].double()
        return (sorted_N.double() - low) / (high - low).clamp(min=1e-12) + 1e-6
    return rank_weights(len(sorted_N), resolved.keep, sorted_N.device).flip(0)
