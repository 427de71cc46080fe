"""The losses of a batch, token by token, for methods that ask for them; whoever does not ask changes nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLosses:
    """The losses of the main task that a forward pass is a sum of; none has a gradient.

    Args:
        losses_N (`Tensor` of shape `(tokens,)`): in nats, zero where nothing is asked for.
        labelled_N (`Tensor` of shape `(tokens,)`): whether the token has a loss at all.
        row_N (`Tensor` of shape `(tokens,)`): the row of each token, from 0.
        rows (`int`): of the batch.
        weight_inputs (`Tensor` of shape `(rows,)` or `(rows, positions)`, *optional*): what came with the batch as
            `loss_weight_inputs`.
        ragged (`bool`, *optional*, defaults to `False`): whether rows have as many tokens here as they have losses,
            and not each as many as any other.
    """

    losses_N: Tensor
    labelled_N: Tensor
    row_N: Tensor
    rows: int
    weight_inputs: Tensor | None = None
    ragged: bool = False

    def by_row(self) -> tuple[Tensor, Tensor]:
        """The loss of each row, summed over its tokens, and the number of those; both of shape `(rows,)`."""
        if not self.ragged:  # which adds up in an order of its own on no device
            shape = (self.rows, -1)
            return self.losses_N.view(shape).sum(dim=1), self.labelled_N.view(shape).sum(dim=1).to(self.losses_N.dtype)
        sums_B = self.losses_N.new_zeros(self.rows).index_add_(0, self.row_N, self.losses_N)
        return sums_B, torch.zeros_like(sums_B).index_add_(0, self.row_N, self.labelled_N.to(sums_B.dtype))


Reduction = Literal["sum", "none"]
# Takes the losses of a forward pass; may return weights of shape `(tokens,)` that they are to be multiplied by.
LossObserver = Callable[[TokenLosses], Tensor | None]


def observe_losses(backbone: Any, name: str, receiver: LossObserver | None) -> None:
    """Has the model around `backbone` call `receiver` in each training forward; `None` takes that back.

    Args:
        backbone: the encoder.
        name (`str`): of the method that asks.
        receiver (`Callable`, *optional*): given [`TokenLosses`].
    """
    receivers = backbone.__dict__.setdefault("loss_observers", {})
    receivers.pop(name, None)
    if receiver is not None:
        receivers[name] = receiver


def has_loss_observers(backbone: Any) -> bool:
    """Whether somebody wants the losses of the next forward."""
    receivers = backbone.__dict__.get("loss_observers")
    return bool(backbone.__dict__.get("loss_recorder") or (receivers and backbone.training))


def notify_observers(backbone: Any, losses: TokenLosses) -> Tensor | None:
    """Gives the losses to whoever has asked; returns the product of the weights that came back, if any."""
    if (listener := backbone.__dict__.get("loss_recorder")) is not None:
        listener(losses)
        return None
    given = [receiver(losses) for receiver in backbone.__dict__["loss_observers"].values()]
    weights = [weights_N for weights_N in given if weights_N is not None]
    return torch.stack(weights).prod(dim=0) if weights else None


@contextmanager
def recording_losses(backbone: Any) -> Iterator[list[TokenLosses]]:
    """Collects the losses of every forward in the block, in whatever mode, and has no one else told of them."""
    heard: list[TokenLosses] = []
    backbone.__dict__["loss_recorder"] = heard.append
    try:
        yield heard
    finally:
        backbone.__dict__["loss_recorder"] = None


@torch.no_grad()
def row_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss of each row of a batch, in nats a token, of shape `(batch_size,)`; nothing is learned from it."""
    with recording_losses(model.backbone) as heard:
        model(**batch)
    sums_B, counts_B = heard[-1].by_row()
    return sums_B / counts_B.clamp(min=1)


def observed_loss(
    backbone: Any,
    loss: Callable[[Reduction], Tensor],
    labelled_BP: Tensor,
    weight_inputs: Tensor | None = None,
    ragged: bool = False,
) -> Tensor:
    """The loss summed over all tokens, each times its weight if a method that has been told of it gives one.

    Args:
        backbone: the encoder, by which methods ask.
        loss (`Callable`): of `"sum"` or `"none"`: the loss summed, or of each token, row after row.
        labelled_BP (`Tensor` of shape `(batch_size, positions)`): where there is a loss.
        weight_inputs (`Tensor`, *optional*): that came with the batch for whoever is told.
        ragged (`bool`, *optional*, defaults to `False`): whether `"none"` gives the tokens with a loss only, and not
            one for each position.
    """
    if not has_loss_observers(backbone):
        return loss("sum")
    with torch.no_grad():
        losses_N = loss("none").detach().flatten()
    if ragged:
        row_N = labelled_BP.nonzero()[:, 0]
        labelled_N = torch.ones_like(row_N, dtype=torch.bool)
    else:
        row_N = torch.arange(len(labelled_BP), device=labelled_BP.device).repeat_interleave(labelled_BP.shape[1])
        labelled_N = labelled_BP.flatten()
    losses = TokenLosses(losses_N, labelled_N, row_N, len(labelled_BP), weight_inputs, ragged)
    weights_N = notify_observers(backbone, losses)
    return loss("sum") if weights_N is None else (weights_N * loss("none").flatten()).sum()
