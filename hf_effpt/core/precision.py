"""Modules that stay in fp32 in a half-precision model, since their updates are too small for it."""

from typing import Any, Self

from torch import Tensor, nn


class KeepsPrecision(nn.Module):
    """A module that follows its model to another device, but is not cast to another dtype."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        def keeps_precision(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(keeps_precision, recurse)
