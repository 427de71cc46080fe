"""The contract of a method that selects the rows that a step learns from, and is charged for looking at more."""

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
        """Returns `function(model, micro_batch)` of all rows, one micro-batch behind the other.

        Args:
            key (`str`): names the work; with equal keys its FLOPs depend on nothing but shapes.
            function (`Callable`): returns a tensor whose first dimension is that of the rows.
            rows (`Mapping[str, Tensor]`): a masked batch.
            model (`nn.Module`, *optional*): the model to apply, by default the training model.
            known (`Tensor`, *optional*): the result, if it has been computed before. FLOPs and reference time are
                charged all the same, and nothing is computed.
        """
        ...


@dataclass(frozen=True)
class SelectionContext:
    """The run, and the services that row selection needs besides.

    Args:
        run ([`RunContext`]): the run; its step is the one to come.
        number (`int`): rows that this process has to return.
        host (`Mapping[str, Tensor]`): the rows on the CPU.
        score_rows ([`ScoreRows`]): applies a model to rows.
        count_flops (`Callable`): returns a context in which the method computes something of its own, whose FLOPs
            are charged; no model may run in it.
        reference_model (`Callable[[str], nn.Module]`): returns the frozen model of one of the method's `references`.
        mask_anew (`Callable`): takes rows and relative masking rates by token, an array of shape `(vocab_size,)`;
            returns the rows with new masks. All of it is on the CPU.
        dataset_id (`str`): tells the rows of this dataset from others.
        masking_id (`str`): changes with all that the masks of an example in an epoch depend on.
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

    resolved = None  # the settings as an object, with each default filled in, where a method has such defaults

    @property
    def references(self) -> tuple[str, ...]:
        """Folders of the models that it compares with; the run is charged for what they have cost."""
        return ()

    @property
    def remasks(self) -> bool:
        """`True` if it draws the masks anew, so that the collator must be the one that masks, and no other."""
        return False

    @property
    def describe(self) -> str:
        """One sentence about the method as it is set."""
        return self.summary

    @property
    def cited(self) -> Paper | None:
        """The paper to cite for the method as it is set; `None` if `describe` names its source."""
        return self.paper

    @property
    def control(self) -> dict[str, Any] | None:
        """All settings of the run to compare with before a gain is put down to the method; `None` for the baseline."""
        return None

    def candidates(self, number: int, step: int | None, fraction: float) -> int:
        """Number of rows that `select` has to be given in optimizer step `step` to return `number`.

        With `step` `None`, the largest such number in the run.

        Raises:
            EffptError: if there would be no choice among them.
        """
        return number

    def select(self, model: nn.Module, rows: dict[str, Tensor], context: SelectionContext) -> dict[str, Tensor]:
        """Returns the `context.number` rows that this process learns from in an optimizer step.

        Args:
            model: the training model.
            rows: as many as `candidates` has said, over all micro-batches, as the collator makes them, with
                `example_id` and `epoch`, int64 of shape `(rows,)`.
            context ([`SelectionContext`]): the run and its services.
        """
        return rows

    def cost_report(self, backbone: nn.Module, costs: CostReport) -> dict[str, Any]:
        """Entry of `run.json` about the method's cost; under `text` a sentence for people."""
        return {}


def row_methods(methods: Sequence[Method]) -> list[RowMethod]:
    """The methods that select rows, in the order in which they do."""
    return [method for method in methods if isinstance(method, RowMethod)]


def candidates(methods: Sequence[Method], number: int, step: int | None, fraction: float) -> int:
    """Number of rows to give to methods that select one after another, for `number` to be left."""
    for method in reversed(row_methods(methods)):
        number = method.candidates(number, step, fraction)
    return number
