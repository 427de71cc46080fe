"""What becomes of the optimizer's state at a growth; averages and step count of a parameter always move together.

With averages of zero and the step count of old ones, or the other way round, the first update would be a wrong
multiple of the learning rate.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def copy_state(optimizer: torch.optim.Optimizer, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Gives the parameters of copies all the state of those they were copied from, on their devices."""
    for trained, copy in pairs:
        for source, target in zip(trained.parameters(), copy.parameters(), strict=True):
            if source in optimizer.state:
                optimizer.state[target] = {
                    name: value.clone() if isinstance(value, Tensor) else value
                    for name, value in optimizer.state[source].items()
                }


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Begins anew for every parameter, as if the optimizer had just been made."""
    optimizer.state.clear()
