"""What a method sees of a run when it picks the rows to learn from, and what it has cost in the end."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Work = Callable[[Any, Batch], Tensor]


class ScoreRows(Protocol):
    """Has a model judge rows, some at a time, as in evaluation, charged to the run."""

    def __call__(
        self, name: str, work: Work, rows: Batch, model: nn.Module | None = None, known: Tensor | None = None
    ) -> Tensor:
        """What `work(model, some of the rows)` gives, for all rows, one after another.

        Args:
            name (`str`): of the work: of equal names, its FLOPs depend on nothing but shapes.
            work (`Callable`): returns a tensor whose first dimension is that of the rows.
            rows (`Mapping[str, Tensor]`): of a masked batch.
            model (`nn.Module`, *optional*): by default the training model.
            known (`Tensor`, *optional*): what comes out, where it has been computed before; then FLOPs and reference
                time are charged, and nothing is done.
        """
        ...


@dataclass(frozen=True)
class Look:
    """What a method may use of a live run when it picks what is learned from in an optimizer step.

    Args:
        number (`int`): of the rows at hand, how many this process is to learn from.
        step (`int`), fraction (`float`), seed (`int`): of the run; the step is counted from 0.
        scored ([`ScoreRows`]): has a model judge rows.
        counted (`Callable`): makes a context in which the method computes something of its own, whose FLOPs are
            charged; no model may run in it.
        reference (`Callable[[str], nn.Module]`): the frozen model of one of the method's `references`.
        mask_anew (`Callable`): the rows, and by token of the vocabulary relative rates at which it is masked, an array
            of shape `(vocab_size,)`; the same rows with other masks. All of it on the CPU.
        host (`Mapping[str, Tensor]`): the rows on the CPU.
        data (`str`): what tells the rows of this dataset from others.
        masks (`str`): all that the masks of an example in an epoch depend on.
    """

    number: int
    step: int
    fraction: float
    seed: int
    scored: ScoreRows
    counted: Callable[[], AbstractContextManager]
    reference: Callable[[str], nn.Module]
    mask_anew: Callable[[Batch, Any], dict[str, Tensor]]
    host: Batch
    data: str
    masks: str


@dataclass(frozen=True)
class CostReport:
    """What a run has spent, and what of it on one method.

    Args:
        seconds, flops (`float`): of the whole run; FLOPs of what methods do are in it if it was charged for them.
        method_seconds, method_flops (`float`): of the method, charged or not.
        prepared_seconds, prepared_flops (`float`): what of that was before the run.
        charged (`bool`): whether the run was charged for it.
    """

    seconds: float
    flops: float
    method_seconds: float
    method_flops: float
    prepared_seconds: float
    prepared_flops: float
    charged: bool
