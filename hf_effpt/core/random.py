"""Random numbers that are pure functions of keys or of seed and step; no global generator advances."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Streams of `step_rng`: methods that draw in the same step get independent numbers.
LAYERS, HEADS, TICKETS, CUTS = range(4)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_ALL = 0xFFFFFFFFFFFFFFFF
_STEPS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN, _FIRST, _SECOND = map(_signed, _STEPS)
_ROW = 0x632BE59BD9B4E019


def mix(values: Any) -> Any:
    """One step of SplitMix64 (Steele et al., 2014) on an int64 tensor or a uint64 array; integers wrap around."""
    is_array = isinstance(values, np.ndarray)
    mixed = (values.view(np.int64) if is_array else values) + _GOLDEN
    # Logical right shifts of signed numbers; written out, since every batch takes many.
    mixed = (mixed ^ (mixed >> 30 & 0x3FFFFFFFF)) * _FIRST
    mixed = (mixed ^ (mixed >> 27 & 0x1FFFFFFFFF)) * _SECOND
    mixed = mixed ^ (mixed >> 31 & 0x1FFFFFFFF)
    return mixed.view(np.uint64) if is_array else mixed


def uniform(keys: Tensor) -> Tensor:
    """A float64 number in [0, 1) for each int64 key."""
    return (mix(keys) >> 11 & 0x1FFFFFFFFFFFFF).double() * 2.0**-53


def row_keys(ids_BL: Tensor, real_BL: Tensor | None = None) -> Tensor:
    """An int64 key for each row, of shape `(batch_size,)`, from its token ids (masks included).

    Padding, where `real_BL` is `False`, does not affect the key, on whichever side it is.
    """
    if real_BL is None:
        return mix(mix(ids_BL + torch.arange(ids_BL.shape[1], device=ids_BL.device) * _ROW).sum(dim=1))
    return mix((mix(ids_BL + places_in_rows(real_BL) * _ROW) * real_BL).sum(dim=1))


def places_in_rows(real_BL: Tensor) -> Tensor:
    """Place of each token among those of its row, from 0; without meaning at padding, where `real_BL` is `False`."""
    return real_BL.cumsum(dim=1) - 1


def salted(keys: Tensor, *salts: int) -> Tensor:
    """Derives independent keys from `keys` for each sequence of integers, taken modulo 2^64."""
    folded = 0  # their hash, on the host, since it is equal for all keys
    for salt in salts:
        folded = ((folded ^ (salt & _ALL)) + _STEPS[0]) & _ALL
        folded = ((folded ^ (folded >> 30)) * _STEPS[1]) & _ALL
        folded = ((folded ^ (folded >> 27)) * _STEPS[2]) & _ALL
        folded ^= folded >> 31
    return mix(keys ^ _signed(folded))


def places(like: Tensor, *salts: int) -> Tensor:
    """Float64 numbers in [0, 1), of the shape of `like` and on its device."""
    return uniform(salted(torch.arange(like.numel(), device=like.device), *salts)).view(like.shape)


def fold(*parts: np.ndarray | int) -> np.ndarray:
    """A uint64 hash of integers; arrays are broadcast, negative numbers wrap around."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return key


def indexed(index: np.ndarray, seed: int) -> np.ndarray:
    """A float64 number in [0, 1) for each index."""
    return (fold(seed, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def step_rng(seed: int, step: int, stream: int) -> np.random.Generator:
    """Random number generator of one stream in one step of a run."""
    return np.random.Generator(np.random.Philox(key=[seed & _ALL, step], counter=[0, 0, 0, stream]))
