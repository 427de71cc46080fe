"""Encoder outputs and head of a batch, for methods that score rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadInputs:
    """Encoder outputs at the labelled positions of a batch, and the head above them.

    B batch, M positions per row, D hidden size, F size of the features, V classes.

    Args:
        hidden_BMD (`Tensor` of shape `(batch_size, positions, hidden_size)`): encoder outputs.
        labels_BM (`Tensor` of shape `(batch_size, positions)`): labels; -100 for none.
        head (`Callable[[Tensor], tuple[Tensor, Tensor]]`): maps hidden states `(..., hidden_size)` to the inputs of
            the last linear layer, `(..., features)`, and its logits, `(..., classes)`. A single logit is a binary
            one, and labels are 0 or 1.
        num_labels_B (`Tensor` of shape `(batch_size,)`, *optional*): labelled positions of each row before
            subsampling.
    """

    hidden_BMD: Tensor
    labels_BM: Tensor
    head: Callable[[Tensor], tuple[Tensor, Tensor]]
    num_labels_B: Tensor | None = None

    @property
    def labelled_BM(self) -> Tensor:
        """`True` at labelled positions, of shape `(batch_size, positions)`."""
        return self.labels_BM != -100

    def subsample(self, number: int | None) -> "HeadInputs":
        """Keeps at most `number` labelled positions per row, evenly spaced; `None` keeps all."""
        if number is None or number >= self.labels_BM.shape[1]:
            return self
        places_M = torch.arange(number, device=self.labels_BM.device)
        num_labels_B1 = self.labelled_BM.sum(dim=1, keepdim=True)
        at_BM = torch.where(num_labels_B1 > number, ((places_M + 0.5) * num_labels_B1 / number).long(), places_M)
        # labelled positions first, so that the n-th of them is in place n
        at_BM = self.labelled_BM.byte().argsort(dim=1, descending=True, stable=True).gather(1, at_BM)
        at_BMD = at_BM[:, :, None].expand(-1, -1, self.hidden_BMD.shape[2])
        return replace(
            self,
            hidden_BMD=self.hidden_BMD.gather(1, at_BMD),
            labels_BM=self.labels_BM.gather(1, at_BM),
            num_labels_B=num_labels_B1[:, 0],
        )
