"""Slope of the loss, from sums that checkpoints hold (Shen et al., 2022, Staged Training).

The slope is d ln(loss) / d ln(FLOPs), by least squares over the steps since the last growth. Step i of n has the
weight (i / n) ** POWER, so that about the last quarter of the steps decides.
"""

import math
from typing import Any

import torch
from torch import Tensor

POWER = 6
LEAST = 50  # steps of a stage, without warm-up, before its slope is used
EVERY = 10  # steps from one reading to the next, since it waits for the device

NAME = "growth_sums"  # buffer of the backbone: sums of 1, x, y, x², x·y, and the number of steps


def prepare(backbone: Any) -> None:
    """Registers the sums as a buffer of `backbone`."""
    device = next(backbone.parameters()).device
    backbone.register_buffer(NAME, torch.zeros(6, dtype=torch.float64, device=device))


def add(backbone: Any, loss: Tensor, flops: float) -> None:
    """Adds a step, without waiting for the device; nothing if its loss is not finite."""
    held = getattr(backbone, NAME)
    sums = held.clone()
    sums[5] += 1
    x, y = math.log(flops), loss.detach().double().clamp(min=1e-12).log()
    one = torch.ones_like(y)
    sums[:5] *= (1 - 1 / sums[5]) ** POWER
    sums[:5] += torch.stack([one, one * x, y, one * x * x, x * y])
    held.copy_(torch.where(y.isfinite(), sums, held))


def slope(backbone: Any) -> float | None:
    """Present slope, in nats of the loss per nat of FLOPs; `None` before `LEAST` steps. Waits for the device."""
    one, x, y, xx, xy, steps = getattr(backbone, NAME).tolist()
    return (one * xy - x * y) / (one * xx - x * x) if steps >= LEAST else None
