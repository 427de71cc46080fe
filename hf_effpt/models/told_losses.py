"""The loss of the main task, told token by token to the methods that ask for it, and weighted where they answer.

B batch, P positions a row with or without a loss, N tokens.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hf_effpt.core.rows import TokenLosses, is_asked_for_losses, tell_losses

Reduction = Literal["sum", "none"]


def told_loss(
    backbone: Any,
    loss: Callable[[Reduction], Tensor],
    asked_BP: Tensor,
    hints: Tensor | None = None,
    packed: bool = False,
) -> Tensor:
    """The loss summed over all tokens, each times its weight if a method that has been told of it gives one.

    Args:
        backbone: the encoder, by which methods ask.
        loss (`Callable`): of `"sum"` or `"none"`: the loss summed, or of each token, row after row.
        asked_BP (`Tensor` of shape `(batch_size, positions)`): where there is a loss.
        hints (`Tensor`, *optional*): that came with the batch for whoever is told.
        packed (`bool`, *optional*, defaults to `False`): whether `"none"` gives the tokens with a loss only, and not
            one for each position.
    """
    if not is_asked_for_losses(backbone):
        return loss("sum")
    with torch.no_grad():
        losses_N = loss("none").detach().flatten()
    if packed:
        row_N = asked_BP.nonzero()[:, 0]
        asked_N = torch.ones_like(row_N, dtype=torch.bool)
    else:
        row_N = torch.arange(len(asked_BP), device=asked_BP.device).repeat_interleave(asked_BP.shape[1])
        asked_N = asked_BP.flatten()
    weights_N = tell_losses(backbone, TokenLosses(losses_N, asked_N, row_N, len(asked_BP), hints, packed))
    return loss("sum") if weights_N is None else (weights_N * loss("none").flatten()).sum()
