"""The losses of a batch, token by token, for methods that ask for them; whoever does not ask changes nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLosses:
    """The losses of the main task that a forward pass is a sum of; none has a gradient.

    Args:
        losses_N (`Tensor` of shape `(tokens,)`): in nats, zero where nothing is asked for.
        asked_N (`Tensor` of shape `(tokens,)`): whether the token has a loss at all.
        row_N (`Tensor` of shape `(tokens,)`): the row of each token, from 0.
        rows (`int`): of the batch.
        hints (`Tensor` of shape `(rows,)` or `(rows, positions)`, *optional*): what came with the batch as
            `loss_hints`.
        packed (`bool`, *optional*, defaults to `False`): whether rows have as many tokens here as they have losses,
            and not each as many as any other.
    """

    losses_N: Tensor
    asked_N: Tensor
    row_N: Tensor
    rows: int
    hints: Tensor | None = None
    packed: bool = False

    def by_row(self) -> tuple[Tensor, Tensor]:
        """The loss of each row, summed over its tokens, and the number of those; both of shape `(rows,)`."""
        if not self.packed:  # which adds up in an order of its own on no device
            shape = (self.rows, -1)
            return self.losses_N.view(shape).sum(dim=1), self.asked_N.view(shape).sum(dim=1).to(self.losses_N.dtype)
        sums_B = self.losses_N.new_zeros(self.rows).index_add_(0, self.row_N, self.losses_N)
        return sums_B, torch.zeros_like(sums_B).index_add_(0, self.row_N, self.asked_N.to(sums_B.dtype))


# Takes the losses of a forward pass; may return weights of shape `(tokens,)` that they are to be multiplied by.
Receiver = Callable[[TokenLosses], Tensor | None]


def ask_for_losses(backbone: Any, name: str, receiver: Receiver | None) -> None:
    """Has the model around `backbone` call `receiver` in each training forward; `None` takes that back.

    Args:
        backbone: the encoder.
        name (`str`): of the method that asks.
        receiver (`Callable`, *optional*): given [`TokenLosses`].
    """
    receivers = backbone.__dict__.setdefault("loss_receivers", {})
    receivers.pop(name, None)
    if receiver is not None:
        receivers[name] = receiver


def is_asked_for_losses(backbone: Any) -> bool:
    """Whether somebody wants the losses of the next forward."""
    receivers = backbone.__dict__.get("loss_receivers")
    return bool(backbone.__dict__.get("loss_listener") or (receivers and backbone.training))


def tell_losses(backbone: Any, losses: TokenLosses) -> Tensor | None:
    """Gives the losses to whoever has asked; returns the product of the weights that came back, if any."""
    if (listener := backbone.__dict__.get("loss_listener")) is not None:
        listener(losses)
        return None
    given = [receiver(losses) for receiver in backbone.__dict__["loss_receivers"].values()]
    weights = [weights_N for weights_N in given if weights_N is not None]
    return torch.stack(weights).prod(dim=0) if weights else None


@contextmanager
def listening(backbone: Any) -> Iterator[list[TokenLosses]]:
    """Collects the losses of every forward in the block, in whatever mode, and has no one else told of them."""
    heard: list[TokenLosses] = []
    backbone.__dict__["loss_listener"] = heard.append
    try:
        yield heard
    finally:
        backbone.__dict__["loss_listener"] = None


@torch.no_grad()
def row_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss of each row of a batch, in nats a token, of shape `(batch_size,)`; nothing is learned from it."""
    with listening(model.backbone) as heard:
        model(**batch)
    sums_B, counts_B = heard[-1].by_row()
    return sums_B / counts_B.clamp(min=1)
