"""Meter of reference time: names the operations of a run, times new ones, and adds them up."""

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.depth import router_of, running

from .flops import documents_apart, loss_of, positioned, unwrap
from .meters import synchronize
from .reference_time_keys import described
from .reference_time_table import ReferenceTimes

Context = Callable[[], AbstractContextManager]
Work = Callable[[Any, Any], Any]

# A measurement: warm-up iterations, least and most iterations, and seconds after which it may end.
WARM_UP, LEAST, MOST, SECONDS = 3, 20, 1000, 2.0


class ReferenceMeter:
    """Adds up the reference time of an optimizer step, from the seconds by operation in `times`.

    `dtype` is that of matrix products. `autocast()` makes the context in which the run computes its loss, and
    `paused()` one whose time is not charged to the run.
    """

    def __init__(self, times: ReferenceTimes, dtype: torch.dtype, autocast: Context, paused: Context) -> None:
        self.times, self.dtype, self.autocast, self.paused = times, dtype, autocast, paused
        self._step: Counter[str] = Counter()
        self._seconds = 0.0  # seconds of the step without an operation in the table
        self.charged: set[str] = set()

    def add_training(self, model: Any, batch: Mapping[str, Tensor]) -> None:
        """Adds the forward and backward pass of a micro-batch."""
        operation = step_operation("train", model, batch, self.dtype)
        self._add(operation, lambda: time_step(model, batch, self.autocast))

    def add_optimizer(self, model: Any, optimizer: Any, max_grad_norm: float) -> None:
        """Adds an optimizer step; call it before the gradients are cleared."""
        operation = optimizer_operation(model, optimizer, max_grad_norm)
        self._add(operation, lambda: time_optimizer(model, optimizer, max_grad_norm))

    def add_work(self, name: str, model: Any, batch: Mapping[str, Tensor], work: Work) -> None:
        """Adds `work(model, batch)`, done by a method without gradients; `name` identifies equal work."""
        operation = step_operation(f"score {name}", model, batch, self.dtype)
        self._add(operation, lambda: time_work(model, batch, work, self.autocast))

    def _add(self, operation: str, measure: Callable[[], float]) -> None:
        def uncharged() -> float:
            with self.paused():
                return measure()

        self.times.seconds(operation, uncharged)
        self._step[operation] += 1
        self.charged.add(operation)

    def add_seconds(self, seconds: float) -> None:
        """Adds measured seconds of work that has no operation in the table."""
        self._seconds += seconds

    def take(self) -> float:
        """Returns the seconds added since the last call and resets them."""
        seconds = self.times.total(self._step) + self._seconds
        self._step.clear()
        self._seconds = 0.0
        return seconds

    def record(self) -> dict[str, Any]:
        """Entry of `run.json`: the machine of the charged times, and the implausible ones among them."""
        faults = [fault for fault in self.times.faults() if any(f"`{charged}`" in fault for charged in self.charged)]
        return {"system": self.times.system, "faults": faults}


def step_operation(kind: str, model: Any, batch: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """Key in the table of work on a batch: kind, shapes, layers that run, and `dtype` of matrix products.

    `kind` is `"train"` (forward and backward), or `"score"` and the name of the work, done in evaluation mode.
    """
    named = sorted(positioned(model, batch).items())
    shapes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in named if name != "documents")
    share, apart = routed_share(model), documents_apart(model, batch) if "document_ids" in batch else None
    routed = "" if share is None else f" {share:.3f} of the rows"
    routed += "" if apart is None else f" {round(8 * apart.share) / 8:.3f} of the pairs of tokens"
    return f"{kind}|{shapes}|{described(model, kind.startswith('score'))}{routed}|{str(dtype).removeprefix('torch.')}"


def routed_share(model: Any) -> float | None:
    """Share of rows routed in the last step, to the nearest eighth; `None` without a router."""
    router = router_of(model.backbone)
    return None if router is None else round(8 * router.share) / 8


def optimizer_operation(model: Any, optimizer: Any, max_grad_norm: float = 0.0) -> str:
    """Key in the table of an optimizer step, with gradient clipping if `max_grad_norm` is above 0.

    Names the optimizer, its settings that are on (counts with their value), and how many parameters have gradients.
    """
    counts = {name: f" {value}" for name, value in optimizer.defaults.items() if type(value) is int}
    on = [name for name, value in optimizer.defaults.items() if value and name != "lr"]
    settings = " ".join(sorted(name + counts.get(name, "") for name in on))
    within = {id(parameter) for layer in running(model.backbone) for parameter in layer.parameters()}
    outside = sum([p.numel() for p in model.parameters() if p.grad is not None and id(p) not in within])
    missing = sum([p.numel() for p in model.parameters() if p.grad is None and id(p) in within])
    return (
        f"optimizer {type(optimizer).__name__} {settings} in {len(optimizer.param_groups)} groups"
        f"{' clipped' if max_grad_norm > 0 else ''}, gradients {outside} outside the layers, {missing} missing|"
        f"{described(model)}"
    )


def time_of(block: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call of `block`: lower quartile of many, since other work only adds time."""
    times: list[float] = []
    while len(times) < WARM_UP + LEAST or (sum(times) < SECONDS and len(times) < MOST):
        synchronize(device)
        began = time.perf_counter()
        block()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.quantiles(times[WARM_UP:], n=4)[0]


def time_step(model: Any, batch: Mapping[str, Tensor], autocast: Context) -> float:
    """Seconds of forward and backward on a copy: weights, gradients and random generators stay."""
    with _standing_in(model) as copied:
        if (router := router_of(copied.backbone)) is not None:
            router.forced = routed_share(model)

        def step() -> None:
            copied.zero_grad()
            with autocast():
                loss = loss_of(copied, batch)
            loss.backward()

        return time_of(step, next(copied.parameters()).device)


def time_work(model: Any, batch: Mapping[str, Tensor], work: Work, autocast: Context) -> float:
    """Seconds of `work` on a copy of `model`, in evaluation mode and without gradients."""
    with _standing_in(model) as copied, torch.no_grad(), autocast():
        copied.eval()
        return time_of(lambda: work(copied, batch), next(copied.parameters()).device)


def time_optimizer(model: Any, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    """Seconds of gradient clipping and an optimizer step on a copy, with gradients where `model` has them."""
    having = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    with _standing_in(model, optimizer) as (copied, own):
        parameters = [parameter for name, parameter in copied.named_parameters() if name in having]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

        def step() -> None:
            if max_grad_norm > 0:  # as in the Trainer
                torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            own.step()

        return time_of(step, parameters[0].device)


@contextmanager
def _standing_in(model: Any, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Any]:
    """Copies model and optimizer for the block; restores the random generators after it."""
    parameter = next(model.parameters())
    with torch.random.fork_rng(devices=[parameter.device] if parameter.is_cuda else []):
        copied, own = copy.deepcopy((model, optimizer))  # together, so that the optimizer holds the copied parameters
        unwrap(copied)
        for layer, original in zip(
            layers_of(copied.backbone).children(), layers_of(model.backbone).children(), strict=True
        ):
            if original._compiled_call_impl is not None:
                layer.compile()
        yield copied if optimizer is None else (copied, own)
