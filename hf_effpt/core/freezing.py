"""Parameters that do not learn: they have no gradient, and the backward pass keeps nothing for them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_FROZEN = "frozen_parameters"  # attribute of the backbone


def freeze(backbone: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Freezes exactly these parameters of `backbone`; others that an earlier call froze learn again.

    Parameters that did not learn before the first call are left alone.
    """
    held: dict[int, nn.Parameter] = backbone.__dict__.get(_FROZEN, {})
    wanted = {id(parameter): parameter for parameter in parameters}
    if wanted.keys() == held.keys():
        return
    for key, parameter in held.items():
        if key not in wanted:
            parameter.requires_grad_(True)
    kept = {key: parameter for key, parameter in wanted.items() if key in held or parameter.requires_grad}
    for parameter in kept.values():
        parameter.requires_grad_(False)
    backbone.__dict__[_FROZEN] = kept


def carry_frozen(source: Any, target: Any) -> None:
    """Freezes the parameters of a model whose namesakes in `source`, another of its class, were frozen by the user."""
    held = source.backbone.__dict__.get(_FROZEN, {})
    own = {name for name, one in source.named_parameters() if not one.requires_grad and id(one) not in held}
    for name, parameter in target.named_parameters():
        if name in own:
            parameter.requires_grad_(False)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freezes all parameters of `module` within the block, then restores `requires_grad`."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
