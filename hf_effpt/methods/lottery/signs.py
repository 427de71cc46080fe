"""Weights that training begins from: as they were, or constants with their or random signs (Zhou et al., 2019)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from hf_effpt.core.random import places

Signs = Literal["rewind", "keep_sign", "random_sign"]
_SIGNS = 0x516  # sets these draws apart from others of the same seed


@torch.no_grad()
def beginning(first: Mapping[str, Tensor], signs: Signs, seed: int) -> dict[str, Tensor]:
    """Matrices that training begins from, made of those as they were.

    `rewind` leaves them; `keep_sign` makes each weight the standard deviation of its matrix, with the weight's sign;
    `random_sign` does so with a random sign.
    """
    begun = {}
    for index, (name, weight) in enumerate(first.items()):
        if signs == "rewind":
            begun[name] = weight
            continue
        sigma = weight.float().std(correction=0)
        negative = weight < 0 if signs == "keep_sign" else places(weight, seed, _SIGNS, index) < 0.5
        begun[name] = torch.where(negative, -sigma, sigma).to(weight.dtype)
    return begun
