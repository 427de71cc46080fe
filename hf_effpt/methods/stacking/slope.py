"""How steeply the loss falls, from sums that a checkpoint keeps (Shen et al., 2022, Staged Training).

The slope is d ln(loss) / d ln(FLOPs), by least squares over the steps since the last growth. A step weighs as its
share of the way to now to a power, so that about the last quarter of them decides, however many there are.
"""

import math
from typing import Any

import torch
from torch import Tensor

POWER = 6
LEAST = 50  # steps in a stage, but for those of a warm-up, before its slope means anything
EVERY = 10  # steps from one look at it to the next, since a look waits for the device

NAME = "growth_sums"  # of the buffer: sums of 1, x, y, x², x·y, and the number of steps


def prepare(backbone: Any) -> None:
    """Gives `backbone` its sums; they are no parameter and are not exported."""
    device = next(backbone.parameters()).device
    backbone.register_buffer(NAME, torch.zeros(6, dtype=torch.float64, device=device))


def remove(backbone: Any) -> None:
    """Takes the sums away."""
    backbone._buffers.pop(NAME, None)


def reset(backbone: Any) -> None:
    """Begins a new stage."""
    getattr(backbone, NAME).zero_()


def add(backbone: Any, loss: Tensor, flops: float) -> None:
    """Adds a step, without waiting for the device."""
    sums = getattr(backbone, NAME)
    sums[5] += 1
    x, y = math.log(flops), loss.detach().double().clamp(min=1e-12).log()
    one = torch.ones_like(y)
    sums[:5] *= (1 - 1 / sums[5]) ** POWER
    sums[:5] += torch.stack([one, one * x, y, one * x * x, x * y])


def slope(backbone: Any) -> float | None:
    """The slope at present, in nats of the loss per nat of FLOPs, or `None` so soon; waits for the device."""
    one, x, y, xx, xy, steps = getattr(backbone, NAME).tolist()
    return (one * xy - x * y) / (one * xx - x * x) if steps >= LEAST else None
