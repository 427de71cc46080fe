"""What a model makes of masked rows, for a method that judges them; nothing is learned from it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadInputs:
    """The outputs of an encoder at the positions of a batch at which it has to answer, and the head above it.

    B batch, M positions a row, D hidden size, F size of the features, V answers to choose from.

    Args:
        hidden_BMD (`Tensor` of shape `(batch_size, positions, hidden_size)`): the encoder's outputs.
        labels_BM (`Tensor` of shape `(batch_size, positions)`): the right answers; -100 where none is asked for.
        head (`Callable[[Tensor], tuple[Tensor, Tensor]]`): from hidden states of shape `(..., hidden_size)` to the
            features that the last linear layer reads, `(..., features)`, and its logits, `(..., answers)`. With one
            answer it is a logit of yes, and labels are 0 or 1.
        num_labels_B (`Tensor` of shape `(batch_size,)`, *optional*): labelled positions of each row before
            subsampling.
    """

    hidden_BMD: Tensor
    labels_BM: Tensor
    head: Callable[[Tensor], tuple[Tensor, Tensor]]
    num_labels_B: Tensor | None = None

    @property
    def labelled_BM(self) -> Tensor:
        """Where an answer is asked for."""
        return self.labels_BM != -100

    def subsample(self, number: int | None) -> "HeadInputs":
        """The reading at no more than `number` positions of a row, evenly spread over those that are asked for."""
        if number is None or number >= self.labels_BM.shape[1]:
            return self
        places_M = torch.arange(number, device=self.labels_BM.device)
        num_labels_B1 = self.labelled_BM.sum(dim=1, keepdim=True)
        at_BM = torch.where(num_labels_B1 > number, ((places_M + 0.5) * num_labels_B1 / number).long(), places_M)
        # those asked for first, so that the n-th of them is in place n
        at_BM = self.labelled_BM.byte().argsort(dim=1, descending=True, stable=True).gather(1, at_BM)
        at_BMD = at_BM[:, :, None].expand(-1, -1, self.hidden_BMD.shape[2])
        return replace(
            self,
            hidden_BMD=self.hidden_BMD.gather(1, at_BMD),
            labels_BM=self.labels_BM.gather(1, at_BM),
            num_labels_B=num_labels_B1[:, 0],
        )
