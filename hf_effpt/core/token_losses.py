"""Per-token losses of a batch: methods may observe them, and may return weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLosses:
    """Per-token losses of the main task in one forward pass, without gradients.

    Args:
        losses_N (`Tensor` of shape `(tokens,)`): in nats; zero without a label.
        labelled_N (`Tensor` of shape `(tokens,)`): `True` if the token has a label.
        row_N (`Tensor` of shape `(tokens,)`): row index of each token.
        rows (`int`): number of rows of the batch.
        weight_inputs (`Tensor` of shape `(rows,)` or `(rows, positions)`, *optional*): the batch's
            `loss_weight_inputs`.
    """

    losses_N: Tensor
    labelled_N: Tensor
    row_N: Tensor
    rows: int
    weight_inputs: Tensor | None = None

    def by_row(self) -> tuple[Tensor, Tensor]:
        """Sum of losses and number of labels of each row, both of shape `(rows,)`."""
        shape = (self.rows, -1)
        return self.losses_N.view(shape).sum(dim=1), self.labelled_N.view(shape).sum(dim=1).to(self.losses_N.dtype)


Reduction = Literal["sum", "none"]
# Receives the losses of a forward pass; may return factors for them, of shape `(tokens,)`.
LossObserver = Callable[[TokenLosses], Tensor | None]


def observe_losses(backbone: Any, name: str, receiver: LossObserver | None) -> None:
    """Registers `receiver` under a method's `name` for the losses of each training forward; `None` removes it."""
    receivers = backbone.__dict__.setdefault("loss_observers", {})
    receivers.pop(name, None)
    if receiver is not None:
        receivers[name] = receiver


def observers_of(backbone: Any) -> list[str]:
    """Names of the methods that observe the losses of each training forward."""
    return list(backbone.__dict__.get("loss_observers") or ())


@contextmanager
def observing_losses(backbone: Any, observer: LossObserver) -> Iterator[None]:
    """Calls `observer` in every forward pass in the block, in any mode, instead of the registered observers."""
    backbone.__dict__["loss_recorder"] = observer
    try:
        yield
    finally:
        backbone.__dict__["loss_recorder"] = None


@contextmanager
def recording_losses(backbone: Any) -> Iterator[list[TokenLosses]]:
    """Collects the losses of every forward pass in the block, in any mode, instead of the observers."""
    heard: list[TokenLosses] = []
    with observing_losses(backbone, heard.append):
        yield heard


@torch.no_grad()
def row_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean loss of each row in nats per labelled token, of shape `(batch_size,)`, without gradients."""
    with recording_losses(model.backbone) as heard:
        model(**batch)
    sums_B, counts_B = heard[-1].by_row()
    return sums_B / counts_B.clamp(min=1)


def observed_loss(
    backbone: Any,
    loss: Callable[[Reduction], Tensor],
    labelled_BP: Tensor,
    weight_inputs: Tensor | None = None,
    is_main: bool = True,
) -> Tensor:
    """Sum of the token losses, weighted by the product of what observers of `backbone` return, if they do.

    `loss` takes the reduction: `"sum"`, or `"none"` for per-token losses, row after row. `labelled_BP`, of shape
    `(batch_size, positions)`, is `True` at labels; `weight_inputs` are the batch's `loss_weight_inputs`. Another loss
    than the main one (`is_main`) is for the observer of a block only, before the main one.
    """
    recorder, receivers = backbone.__dict__.get("loss_recorder"), backbone.__dict__.get("loss_observers")
    if not recorder and not (receivers and backbone.training and is_main):  # written out, since every forward asks
        return loss("sum")
    with torch.no_grad():
        losses_N = loss("none").detach().flatten()
    row_N = torch.arange(len(labelled_BP), device=labelled_BP.device).repeat_interleave(labelled_BP.shape[1])
    losses = TokenLosses(losses_N, labelled_BP.flatten(), row_N, len(labelled_BP), weight_inputs)
    given = [receiver(losses) for receiver in ([recorder] if recorder else receivers.values())]
    weights = [weights_N for weights_N in given if weights_N is not None]
    return (torch.stack(weights).prod(dim=0) * loss("none").flatten()).sum() if weights else loss("sum")
