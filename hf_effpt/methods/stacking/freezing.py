"""Parts that run forward only: their parameters learn nothing, and the backward pass keeps nothing of them."""

from collections.abc import Iterable

from torch import nn

_HELD = "held"  # the parameters that are to learn again


def hold(modules: Iterable[nn.Module]) -> None:
    """Has the parameters of these modules learn nothing."""
    for module in modules:
        if _HELD not in module.__dict__:
            module.__dict__[_HELD] = [parameter for parameter in module.parameters() if parameter.requires_grad]
            for parameter in module.__dict__[_HELD]:
                parameter.requires_grad_(False)


def release(modules: Iterable[nn.Module]) -> None:
    """Has those of their parameters learn again that [`hold`] has stopped, and no others."""
    for module in modules:
        for parameter in module.__dict__.pop(_HELD, ()):
            parameter.requires_grad_(True)
