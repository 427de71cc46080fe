"""Temporary evaluation mode, for models whose modules may be in different modes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .metrics import accumulator_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts all modules in evaluation mode within the block, then restores the mode of each."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def observing(backbone: nn.Module, model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a training run; random state and metric sums are restored afterwards."""
    device = next(backbone.parameters()).device
    accumulator = accumulator_of(backbone)
    sums = accumulator.take()
    try:
        with evaluating(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        accumulator.sums = sums
