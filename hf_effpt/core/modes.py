"""Training and evaluation mode of a model whose parts need not all be in the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .metrics import accumulator_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The whole model in evaluation mode; each module is afterwards in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def observing(backbone: nn.Module, model: nn.Module) -> Iterator[None]:
    """A look at a model in training: in evaluation mode; random numbers and tally are afterwards what they were."""
    device = next(backbone.parameters()).device
    tally = accumulator_of(backbone)
    sums = tally.take()
    try:
        with evaluating(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        tally.sums = sums
