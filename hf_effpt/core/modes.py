"""Temporary modes of a model: evaluation, and forward passes that leave no trace in a run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from .anatomy import layers_of
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
def aside(backbone: nn.Module) -> Iterator[None]:
    """Context of forward passes beside those of a run; restores the random state and the sums of metrics."""
    device = next(backbone.parameters()).device
    accumulator = accumulator_of(backbone)
    sums = accumulator.take()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        accumulator.sums = sums


def uncompiled(backbone: nn.Module) -> AbstractContextManager:
    """Context in which compiled layers of `backbone` run as they are written, for a few passes in another shape."""
    compiled = any(layer._compiled_call_impl is not None for layer in layers_of(backbone).children())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
