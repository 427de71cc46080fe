"""Modules and computations that stay in fp32 in a half-precision model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn


class KeepsPrecision(nn.Module):
    """A module that follows its model to another device, but keeps its dtype; updates are too small for fewer bits."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        def keeps_precision(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(keeps_precision, recurse)


def without_autocast(like: Tensor) -> AbstractContextManager:
    """Context without autocast, which lowers precision, on the device of `like`."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
