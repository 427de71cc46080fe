"""Modules whose numbers move in steps too small for half precision."""

from typing import Any, Self

from torch import Tensor, nn


class KeepsPrecision(nn.Module):
    """A module that moves along when a model is cast, and is not cast itself."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        def keeps_precision(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(keeps_precision, recurse)
