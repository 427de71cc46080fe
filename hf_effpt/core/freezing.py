"""Frozen modules: their parameters learn nothing, and the backward pass keeps nothing of them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

_HELD = "held"  # the parameters that are to learn again


def hold(modules: Iterable[nn.Module]) -> None:
    """Freezes the parameters of these modules."""
    for module in modules:
        if _HELD not in module.__dict__:
            module.__dict__[_HELD] = [parameter for parameter in module.parameters() if parameter.requires_grad]
            for parameter in module.__dict__[_HELD]:
                parameter.requires_grad_(False)


def release(modules: Iterable[nn.Module]) -> None:
    """Undoes [`hold`]; parameters that were frozen before it stay frozen."""
    for module in modules:
        for parameter in module.__dict__.pop(_HELD, ()):
            parameter.requires_grad_(True)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freezes all parameters of `module` for as long as the block lasts."""
    hold([module])
    try:
        yield
    finally:
        release([module])
