"""What a model makes of masked rows, for a method that judges them; nothing is learned from it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """The outputs of an encoder at the positions of a batch at which it has to answer, and the head above it.

    B batch, M positions a row, D hidden size, F size of the features, V answers to choose from.

    Args:
        hidden_BMD (`Tensor` of shape `(batch_size, positions, hidden_size)`): the encoder's outputs.
        labels_BM (`Tensor` of shape `(batch_size, positions)`): the right answers; -100 where none is asked for.
        head (`Callable[[Tensor], tuple[Tensor, Tensor]]`): from hidden states of shape `(..., hidden_size)` to the
            features that the last linear layer reads, `(..., features)`, and its logits, `(..., answers)`. With one
            answer it is a logit of yes, and labels are 0 or 1.
    """

    hidden_BMD: Tensor
    labels_BM: Tensor
    head: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def asked_BM(self) -> Tensor:
        """Where an answer is asked for."""
        return self.labels_BM != -100
