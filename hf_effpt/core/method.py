"""The contract of an efficiency method.

A run calls the hooks of its methods in this order; `context` is the [`RunContext`]:

    method.bind(config, others)                      # checked before anything is built, and again for the model
    method.against_next_tokens(until)                # checked in a run that learns next tokens first
    method.inject(backbone)                          # adds parameters, buffers and wrappers
    method.adopt(backbone)                           # only for trained weights from a run without the method
    method.prepare(backbone, context)                # only when a new run begins, before the optimizer is made
    for step in run:
        method.schedule(backbone, context)           # what runs in this step: layers, gates, rates
        method.frozen(backbone, context)             # what does not learn in this step
        method.select(model, rows, context)          # `RowMethod` only: which rows are learned from
        for micro_batch in step:
            loss = model(micro_batch).loss + method.penalty(backbone)
            loss.backward()                          # observers of single token losses (`token_losses`) are called
        optimizer.step()
        method.advance(backbone, context)            # changes weights; returns True if parameters came or went
        method.metrics(backbone, sums)               # when the run logs, if anything was added to its accumulator
    method.eject(backbone)                           # of a copy, for every export: leaves the stock architecture
    method.save_artifacts(backbone, folder)          # files beside the exported model

A resumed run calls `bind` and `inject` with the configuration of the checkpoint, then goes on with `schedule`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from .context import RunContext
from .depth import flatten
from .errors import EffptError
from .freezing import freeze
from .paper import Paper
from .settings import check_settings, default_of


@dataclass
class Method:
    """One efficiency technique; its fields are the keys of its recipe section.

    Learned values are parameters or buffers of the model. Decisions are pure functions of `(seed, step, fraction)`, or
    events in the model's configuration. So a run resumes exactly from a checkpoint.

    Hooks receive the *backbone*: the encoder that will be exported. Modules that a method puts into it may declare as
    attributes `in_snapshot`, `no_weight_decay` and `learning_rate`; `is_work`, if their hooks compute a part of the
    step, whose FLOPs are counted; and `evaluation_policies`, further ways to run the model that are evaluated too.

    Attributes:
        name: key in a recipe's `methods`.
        summary: one sentence, for lists and model cards.
        paper: its publication.
        conflicts: names of methods that it cannot run with.
        order: rank among methods that change the architecture: 1 depth, 2 width, 9 neither.
        example: settings for tests, with which it acts within eight steps of a model of four layers.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[Paper]
    conflicts: ClassVar[frozenset[str]] = frozenset()
    order: ClassVar[int] = 9
    example: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def departures(self) -> str:
        """Differences between the method with these settings and its publication, for model cards; may be empty."""
        return ""

    @property
    def changes_parameters(self) -> bool:
        """`True` while parameters may still come or go in the run, which its optimizer has to follow."""
        return False

    @property
    def needs_snapshot(self) -> bool:
        """`True` while weights may still be rewound: then the model keeps a [`Snapshot`] of itself."""
        return False

    @property
    def measures_loss(self) -> bool:
        """`True` if decisions depend on the loss that the model computes itself, beside that of a step."""
        return False

    @property
    def settles_at(self) -> float:
        """Fraction of the clock from which the architecture no longer changes; infinite if it counts steps."""
        return 0.0

    def least_steps(self, budget: int) -> int:
        """Last step, out of `budget`, at which the method may still change the model; 0 if none."""
        return 0

    def against_next_tokens(self, until: float) -> str:
        """Reason why it is unsound, as set, in a run that learns next tokens up to the fraction `until` of the clock.

        It goes on from the method's name: "reads whole rows"; empty if nothing speaks against it.
        """
        return ""

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        """Checks the settings against the model's `config` (or `None`) and the other methods of the run, by name.

        Raises an `EffptError` if the combination is unsound.
        """

    def inject(self, backbone: nn.Module) -> None:
        """Rewires `backbone` in place; may add parameters or buffers, never renames one."""

    def adopt(self, backbone: nn.Module) -> None:
        """Adapts to loaded trained weights that do not come from a run of the method."""

    def prepare(self, backbone: nn.Module, context: RunContext) -> None:
        """Reads the training text (`context.text`) or changes the weights, before a new run and its optimizer.

        Raises an `EffptError` if the text does not suit the settings.
        """

    def schedule(self, backbone: nn.Module, context: RunContext) -> None:
        """Sets what `backbone` runs in step `context.step` (from 0); called before each step."""

    def frozen(self, backbone: nn.Module, context: RunContext) -> Iterable[nn.Parameter]:
        """Parameters that do not learn in step `context.step`; the run keeps them from having gradients."""
        return ()

    def penalty(self, backbone: nn.Module) -> Tensor | None:
        """A scalar term of the loss of a step; every micro-batch calls it and adds its share; `None` for none."""
        return None

    def advance(self, backbone: nn.Module, context: RunContext) -> bool:
        """Changes weights after `context.step` steps; returns `True` if parameters came or went."""
        return False

    def eject(self, backbone: nn.Module) -> None:
        """Undoes `inject`: leaves a stock model of the layers that run, nothing frozen. Overrides call it last."""
        freeze(backbone, ())
        flatten(backbone)

    def save_artifacts(self, backbone: nn.Module, folder: Path) -> None:
        """Writes files of its own into the folder of the exported model."""

    def metrics(self, backbone: nn.Module, sums: Mapping[str, float]) -> dict[str, float]:
        """Entries of the log, from the sums that the method added to the backbone's [`MetricAccumulator`]."""
        return {}

    def cost_signature(self, backbone: nn.Module) -> str:
        """Text that differs if steps of the same layers may differ in time; may be empty."""
        return ""

    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as the ledger in `config.json` keeps them."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != default_of(field)
        }


def start_after(method: Method, after: float | None, others: Mapping[str, Method]) -> float:
    """Fraction of the clock from which `method` may act: `after`, by default when those of lower `order` have settled.

    Raises an `EffptError` if `after` lies before that, or if it is not known when that is.
    """
    waits_for = (other for other in others.values() if other.order < method.order)
    last = max(waits_for, key=lambda other: other.settles_at, default=None)
    settled = 0.0 if last is None else last.settles_at
    if last is not None and settled > 1.0:
        raise EffptError(
            f"`{method.name}` starts when `{last.name}` no longer changes the architecture, and how far the clock is "
            f"then is not known where `{last.name}` counts steps; tell it a share of the clock instead, below 1."
        )
    if after is not None and after < settled:
        raise EffptError(
            f"`{method.name}.after` is {after}, but another method changes the architecture until {settled} of "
            f"the clock; leave `after` out (it then starts by itself) or set it to at least {settled}."
        )
    return settled if after is None else after
