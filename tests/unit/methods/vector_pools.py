"""Pools of rows with vectors, and strategies that see them, without a model."""

from types import SimpleNamespace

import torch

from hf_effpt.methods.selection.pool import Pool
from hf_effpt.methods.selection.strategy import ResolvedSettings
from hf_effpt.methods.selection.vectors import EXTRAS

SEED = 3


def config(size):
    return SimpleNamespace(hidden_size=size)


def made(kind, size, seed=SEED, **resolved):
    """A strategy with its usual settings and these, at its beginning."""
    defaults = {"scorer": kind.scorers[0], "rule": kind.rules[0] if kind.rules else None}
    strategy = kind(ResolvedSettings(**{**defaults, **kind.defaults, **resolved}), config(size))
    strategy.draw(seed)
    return strategy


def pool(vectors_ND, step=0, ids=None, extras=None):
    """Rows with these vectors; without ids, rows that have not been there before in the steps before."""
    number = len(vectors_ND)
    ids_N = torch.arange(number) + step * number if ids is None else torch.as_tensor(ids)
    behind = torch.zeros(number, EXTRAS) if extras is None else extras
    return Pool(ids_N * 1_000_003 + 17, ids_N, torch.cat([vectors_ND, behind], dim=1), step, 0.5, SEED)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)
