"""The contract of methods that select the rows that a step learns from, and are charged for scoring more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from .context import Batch, RunContext
from .method import Method, Paper

ScoreFunction = Callable[[Any, Batch], Tensor]


class ScoreRows(Protocol):
    """Applies a model to rows in evaluation mode, a micro-batch at a time, and charges the run for it."""

    def __call__(
        self,
        key: str,
        function: ScoreFunction,
        rows: Batch,
        model: nn.Module | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Returns `function(model, micro_batch)` for all rows, concatenated.

        Args:
            key (`str`): name of the work; with equal keys, FLOPs depend on shapes only.
            function (`Callable`): returns a tensor whose first dimension is that of the rows.
            rows (`Mapping[str, Tensor]`): a masked batch.
            model (`nn.Module`, *optional*): the model to apply, by default the training model.
            known (`Tensor`, *optional*): the result, if computed before. FLOPs and reference time are still charged.
        """
        ...


@dataclass(frozen=True)
class SelectionContext:
    """The run, and the services for row selection.

    Args:
        run ([`RunContext`]): the run before the step.
        number (`int`): number of rows that this process has to return.
        host (`Mapping[str, Tensor]`): the rows on the CPU.
        score_rows ([`ScoreRows`]): applies a model to rows.
        count_flops (`Callable`): returns a context that charges the FLOPs of computations without a model.
        reference_model (`Callable[[str], nn.Module]`): returns the frozen model of one of the method's `references`.
        mask_anew (`Callable`): takes rows and relative masking rates by token, an array of shape `(vocab_size,)`;
            returns the rows with new masks. All of it is on the CPU.
        dataset_id (`str`): identifies the rows of the dataset.
        masking_id (`str`): identifies all settings that the masks of an example in an epoch depend on.
    """

    run: RunContext
    number: int
    host: Batch
    score_rows: ScoreRows
    count_flops: Callable[[], AbstractContextManager]
    reference_model: Callable[[str], nn.Module]
    mask_anew: Callable[[Batch, Any], dict[str, Tensor]]
    dataset_id: str
    masking_id: str


@dataclass(frozen=True)
class CostReport:
    """Time and FLOPs of a run, and those of one method in it.

    Args:
        seconds, flops (`float`): of the whole run. The FLOPs of methods are in it if the run was charged for them.
        method_seconds, method_flops (`float`): of the method, charged or not.
        upfront_seconds, upfront_flops (`float`): the part of that which was spent before the first step.
        charged (`bool`): `True` if the run was charged for its methods.
    """

    seconds: float
    flops: float
    method_seconds: float
    method_flops: float
    upfront_seconds: float
    upfront_flops: float
    charged: bool


@dataclass
class RowMethod(Method):
    """A method that selects rows; `candidates` and `select` are called before each step, after `schedule`."""

    resolved = None  # settings with each default filled in, for methods whose defaults depend on others

    @property
    def references(self) -> tuple[str, ...]:
        """Folders of reference models; the run is charged for their cost."""
        return ()

    @property
    def remembers(self) -> bool:
        """`True` if it carries over from step to step what depends on the rows or the masks of a step."""
        return True

    def against_next_tokens(self, until: float) -> str:
        return "judges rows by their masks, and where next tokens are learned they have none"

    @property
    def remasks(self) -> bool:
        """`True` if it draws masks anew, which needs the masking collator."""
        return False

    @property
    def describe(self) -> str:
        """One sentence about the method with these settings."""
        return self.summary

    @property
    def cited(self) -> Paper | None:
        """Paper to cite for these settings; `None` if `describe` names the source."""
        return self.paper

    @property
    def control(self) -> dict[str, Any] | None:
        """Settings of the control run that a gain must be measured against; `None` for the baseline."""
        return None

    def candidates(self, number: int, step: int | None, fraction: float) -> int:
        """Number of rows that `select` has to be given in optimizer step `step` to return `number`.

        With `step` `None`, the largest such number in the run. Raises an `EffptError` if it leaves no choice.
        """
        return number

    def select(self, model: nn.Module, rows: dict[str, Tensor], context: SelectionContext) -> dict[str, Tensor]:
        """Returns the `context.number` rows that this process learns from in an optimizer step.

        Args:
            model: the training model.
            rows: a collated batch of `candidates` rows, with `example_id` and `epoch`, int64 of shape `(rows,)`.
            context ([`SelectionContext`]): the run and its services.
        """
        return rows

    def cost_report(self, backbone: nn.Module, costs: CostReport) -> dict[str, Any]:
        """Entry of `run.json` about the method's cost; under `text` a sentence for people."""
        return {}


def row_methods(methods: Sequence[Method]) -> list[RowMethod]:
    """Methods that select rows, in the order in which they act."""
    return [method for method in methods if isinstance(method, RowMethod)]


def candidates(methods: Sequence[Method], number: int, step: int | None, fraction: float) -> int:
    """Number of rows to draw so that methods that select one after another leave `number`."""
    for method in reversed(row_methods(methods)):
        number = method.candidates(number, step, fraction)
    return number
