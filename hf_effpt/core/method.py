"""The contract of an efficiency method, and the registry through which everything else finds one."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .context import CostReport, Look
from .errors import EffptError
from .paper import Paper

METHODS: dict[str, type[Method]] = {}


@dataclass(frozen=True)
class Run:
    """What a method may use of a live run at the end of an optimizer step.

    Args:
        model (`nn.Module`): the training model; called with a batch, its output has the `loss`.
        optimizer (`torch.optim.Optimizer`): with the state of the model's parameters.
        loss (`Tensor`): the mean loss of the step over micro-batches and processes, a scalar on the device; reading
            its value waits for the device.
        flops (`float`): spent so far.
        draw (`Callable[[int], Iterator]`): so many batches of training rows, on the device, of those that are not in
            the run's own order; each process has its own, and their tokens are charged.
        learning (`Callable`): of a batch, the context in which a method computes a loss and gradients of its own: in
            the run's precision, its FLOPs charged. Work on batches of equal shapes is taken to be equal.
        seed (`int`, *optional*, defaults to 0): of the run.
        rising (`bool`, *optional*, defaults to `False`): whether the learning rate is still warming up.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Tensor
    flops: float
    draw: Callable[[int], Iterator[dict[str, Tensor]]]
    learning: Callable[[Mapping[str, Tensor]], AbstractContextManager]
    seed: int = 0
    rising: bool = False


@dataclass
class Method:
    """One efficiency technique; a method *is* its settings, so its fields are what a recipe may set.

    What a method learns lives in the model as parameters or buffers. What it decides is a pure function of
    `(seed, step, fraction)`, or it is written into the model's configuration. So it keeps no state of its own, and
    a run resumes exactly from what a checkpoint holds anyway.

    Every hook receives the *backbone*: the encoder (`BertModel`-shaped) that will be exported. `fraction` is the
    share of the clock's budget that is spent, from 0 to 1.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[Paper]
    conflicts: ClassVar[frozenset[str]] = frozenset()
    # Of what changes the architecture, the place in the order in which it does: depth 1, width 2.
    order: ClassVar[int] = 9
    cuts_depth: ClassVar[bool] = False  # whether it leaves out layers for good
    reads_text: ClassVar[bool] = False  # whether `prepare` looks through the training text

    @property
    def heeds_loss(self) -> bool:
        """Whether `advance` reads the loss of every step, which several processes then have to agree on."""
        return False

    @property
    def changes_parameters(self) -> bool:
        """Whether the set of parameters will still change in the run, which its optimizer has to follow."""
        return False

    @property
    def needs_snapshot(self) -> bool:
        """Whether weights will still be rewound: then the model keeps a [`Snapshot`], taken when a new run begins."""
        return False

    @property
    def settles_at(self) -> float:
        """The fraction of the clock from which the method no longer changes the architecture; infinite if unknown."""
        return 0.0

    @property
    def prepared_by(self) -> Mapping[str, float]:
        """Methods that run before this one's changes, not after, and the fraction of the clock at which each ends."""
        return {}

    def least_steps(self, budget: int) -> int:
        """In a budget of so many optimizer steps, the one until which the method may have to change the model."""
        return 0

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        """Checks the settings against the model's `config` and the run's other methods, before anything is built.

        Raises:
            EffptError: if the combination is unsound.
        """

    def prepare(self, backbone: nn.Module, text: Any) -> None:
        """Finds out of the training text, or changes of the weights, what the method needs before a new run begins.

        Args:
            backbone: the encoder, still on the CPU and without an optimizer.
            text: with `batches()`, which yields the token ids of the training rows as int64 arrays of shape
                `(rows, sequence_length)`; `continues`, for each token of the vocabulary whether it goes on with the
                word of the token before; `specials`, the ids of the special tokens; `mask`, `pad` and
                `unknown`, some of them; `rows`, with a length, and `identity`, which tells them from others; and
                `seed`, of the run. `None` for a method without `reads_text`.

        Raises:
            EffptError: if the text does not suit the settings.
        """

    def adopt(self, backbone: nn.Module) -> None:
        """Takes trained weights as they are: called after weights were loaded that no run of this method has left."""

    def inject(self, backbone: nn.Module) -> None:
        """Rewires `backbone` in place; may add parameters or buffers, never renames one."""

    def schedule(self, backbone: nn.Module, step: int, fraction: float, seed: int) -> None:
        """Sets what `backbone` runs in optimizer step `step` (from 0); called before each step and on resume."""

    def advance(self, backbone: nn.Module, step: int, fraction: float, run: Run | None = None) -> bool:
        """Changes weights after `step` steps are done; returns whether the set of parameters changed.

        `run` is the live run, or `None` where only the weights are at hand. A method that needs its loss in every step
        says so by `heeds_loss`.
        """
        return False

    def penalty(self, backbone: nn.Module) -> Tensor | None:
        """An extra loss (a scalar), counted once an optimizer step."""
        return None

    @property
    def references(self) -> tuple[str, ...]:
        """Folders of the models that it compares with; what they have cost is charged to the run."""
        return ()

    @property
    def describe(self) -> str:
        """What it does with these settings, in one sentence."""
        return self.summary

    @property
    def cited(self) -> Paper | None:
        """The paper to cite with these settings, if it is one of its own."""
        return self.paper

    @property
    def control(self) -> dict[str, Any] | None:
        """Its settings in the run without which no gain can be put down to it; `None` if the baseline is enough."""
        return None

    def candidates(self, number: int, step: int | None, fraction: float) -> int:
        """How many rows `select` is to be given in optimizer step `step` (from 0) for it to return `number`.

        Without a step, the most that it is ever given.

        Raises:
            EffptError: if it could not choose among so few.
        """
        return number

    def select(self, model: nn.Module, rows: dict[str, Tensor], look: Look) -> dict[str, Tensor]:
        """Picks the rows that this process learns from in an optimizer step.

        Args:
            model: the training model.
            rows: as many as `candidates` has said, over all micro-batches, as the collator makes them, with
                `example_id` and `epoch`, int64 of shape `(rows,)`.
            look ([`Look`]): the run; `look.number` rows are to be returned.
        """
        return rows

    def cost_report(self, backbone: nn.Module, spent: CostReport) -> dict[str, Any]:
        """What `run.json` says of what the method has cost; under `text` a sentence for people."""
        return {}

    def wrap_collator(self, collator: Any) -> Any:
        """Returns the data collator to use in place of `collator`."""
        return collator

    def eject(self, backbone: nn.Module) -> None:
        """Undoes `inject`: leaves only the stock architecture, at its present depth."""

    def save_artifacts(self, backbone: nn.Module, folder: Path) -> None:
        """Writes into the folder of the exported model what a run leaves besides."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What a log entry says of the method, from the sums that it has added to the backbone's tally."""
        return {}

    def cost_signature(self, backbone: nn.Module) -> str:
        """What of the method decides the time of a step besides which layers run; empty if nothing does."""
        return ""

    def policies(self, backbone: nn.Module) -> Mapping[str, Callable[[], AbstractContextManager]]:
        """Other ways to run `backbone` in evaluation than as it is exported, by name: contexts to evaluate it in.

        An evaluation gives the held-out loss in each of them as `held_out_loss_{name}`.
        """
        return {}

    def settings(self) -> dict[str, Any]:
        """The settings that differ from the defaults: what the ledger in `config.json` keeps."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != _default(field)
        }


def start_after(name: str, after: float | None, others: Mapping[str, Method]) -> float:
    """The fraction of the clock from which method `name` may act: `after`, or when the others have settled.

    Raises:
        EffptError: if `after` lies before that.
    """
    rank = METHODS[name].order
    waits_for = (other for other in others.values() if other.order < rank and name not in other.prepared_by)
    last = max(waits_for, key=lambda other: other.settles_at, default=None)
    settled = 0.0 if last is None else last.settles_at
    if last is not None and settled > 1.0:
        raise EffptError(
            f"`{name}` starts when `{last.name}` no longer changes the architecture, and how far the clock is then is "
            f"not known where `{last.name}` counts steps; tell it a share of the clock instead, below 1."
        )
    if after is not None and after < settled:
        raise EffptError(
            f"`{name}.after` is {after}, but another method changes the architecture until {settled} of "
            f"the clock; leave `after` out (it then starts by itself) or set it to at least {settled}."
        )
    return settled if after is None else after


def end_before(name: str, others: Mapping[str, Method]) -> float:
    """The fraction of the clock at which method `name` has to end for what it prepares; 1 if that is nothing."""
    return min((other.prepared_by[name] for other in others.values() if name in other.prepared_by), default=1.0)


def has_lost_layers(config: Any) -> bool:
    """Whether a method that may leave out layers has cut the model already: they are not to be grown again."""
    acted = {event["method"] for event in getattr(config, "events", None) or []}
    return any(METHODS[name].cuts_depth for name in acted if name in METHODS)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def register(method: type[Method]) -> type[Method]:
    """Adds a method class to `METHODS` under its name."""
    if METHODS.get(method.name, method) is not method:
        raise EffptError(f"Two methods are called `{method.name}`: {METHODS[method.name]} and {method}; rename one.")
    METHODS[method.name] = method
    return method


def unregister(name: str) -> None:
    """Removes a method class from `METHODS`."""
    METHODS.pop(name, None)


def nearest(wrong: str, valid: list[str]) -> str:
    """A hint that names the valid key nearest to a mistyped one, or all of them."""
    close = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"valid ones are: {', '.join(sorted(valid)) or 'none'}."


def candidates(methods: Sequence[Method], number: int, step: int | None, fraction: float) -> int:
    """How many rows methods that pick one after another are to be given for `number` to be left."""
    for method in reversed(methods):
        number = method.candidates(number, step, fraction)
    return number


def build_methods(ledger: Mapping[str, Mapping[str, Any] | None] | None, config: Any = None) -> list[Method]:
    """Builds the methods of a run from its ledger and checks that they may run together.

    Args:
        ledger (`Mapping[str, Mapping]`, *optional*): settings by method name, `{"layerdrop": {"p": 0.2}}`.
        config (*optional*): the configuration of the model they act on; without it only the settings are checked.

    Raises:
        EffptError: for an unknown method or setting, an impossible value, or methods that exclude each other.
    """
    importlib.import_module("hf_effpt.methods")  # fills METHODS; it imports this module, so not before now
    methods: dict[str, Method] = {}
    for name, settings in (ledger or {}).items():
        if name not in METHODS:
            raise EffptError(f"There is no method `{name}`: {nearest(name, list(METHODS))}")
        valid = [field.name for field in dataclasses.fields(METHODS[name])]
        for key in settings or {}:
            if key not in valid:
                raise EffptError(f"Method `{name}` has no setting `{key}`: {nearest(key, valid)}")
        try:
            methods[name] = METHODS[name](**(settings or {}))
        except TypeError as error:
            raise EffptError(
                f"A setting of `{name}` in {dict(settings or {})} has the wrong type: {error}."
            ) from error
    # First those whose changes the others wait for: when they have settled may depend on the model.
    for name, method in sorted(methods.items(), key=lambda item: item[1].order):
        others = {other: methods[other] for other in methods if other != name}
        for other, that in others.items():
            if other in method.conflicts or name in that.conflicts:
                raise EffptError(f"`{name}` and `{other}` cannot run together; remove one of them from `methods`.")
        method.bind(config, others)
    return [methods[name] for name in METHODS if name in methods]  # an order that no JSON file can change
