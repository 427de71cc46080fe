"""The loss of each row of a batch, for a method that asks for it; whoever does not ask changes nothing."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Receiver = Callable[[Tensor, Tensor], None]


def ask_for_row_losses(backbone: Any, receiver: Receiver | None) -> None:
    """Has the model around `backbone` call `receiver` in each training forward; `None` takes that back.

    It is given the losses of the rows, each summed over the row's labels and without a gradient, and the numbers of
    those labels, both of shape `(batch_size,)`.
    """
    backbone.__dict__["row_losses"] = receiver


def receiver_of(backbone: Any) -> Receiver | None:
    """Who has asked for the losses of the rows."""
    return backbone.__dict__.get("row_losses")
