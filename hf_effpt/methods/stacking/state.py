"""Optimizer state at a growth.

Averages and step count of a parameter move together: averages of zero with an old step count, or the other way round,
would make the first update a wrong multiple of the learning rate.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def copy_state(optimizer: torch.optim.Optimizer, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Copies the optimizer state of each layer to its copy."""
    for trained, copy in pairs:
        for source, target in zip(trained.parameters(), copy.parameters(), strict=True):
            if source in optimizer.state:
                optimizer.state[target] = {
                    name: value.clone() if isinstance(value, Tensor) else value
                    for name, value in optimizer.state[source].items()
                }


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Drops the optimizer state of every parameter."""
    optimizer.state.clear()
