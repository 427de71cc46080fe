"""Charging: what methods do besides training, between two steps, and who pays for it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core.ledger import rewarmed
from hf_effpt.core.method import Method, Run

from .loading import LoadingTrainer
from .reference_models import UNITS


class ChargingTrainer(LoadingTrainer):
    """A Trainer that lets methods see the run, and charges its clock for their work."""

    methods: list[Method]
    trained_share: float
    _warmup = 0.0  # the share of the budget that the learning rate rises in, once there is a schedule
    _step_loss: Any
    _step_flops: float
    method_flops: dict[str, float]
    preparation: dict[str, float]  # seconds that each method took before a new run
    prior: dict[str, dict[str, float]]  # what models that it compares with had cost before, by unit of a clock
    prepaid: float  # the share of the budget that is for that
    _uncharged = 0.0  # seconds of a method's that only measured
    _in_table = 0.0  # seconds of a method's that reference time knows

    def live_run(self) -> Run:
        """The run as methods see it at the end of a step."""
        loss = self._step_loss
        if self.args.world_size > 1 and any(method.heeds_loss for method in self.methods):
            loss = self.accelerator.reduce(loss, "mean")
        self._counted: dict[tuple, int] = {}
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # Accelerate wraps it
        rising = self.trained_share < self._warmup or rewarmed(self.model.config, self.clock.steps) < 1
        return Run(self.model, optimizer, loss, self.clock.flops, self.draw, self.learning, self.args.seed, rising)

    @contextmanager
    def learning(self, batch: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """The context in which a method computes a loss and gradients of its own."""
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in batch.items())
        # Counting slows work down many times, so what has equal shapes is counted once.
        counter = FlopCounterMode(display=False) if shapes not in self._counted else None
        with self.accelerator.autocast(), counter or nullcontext():
            yield
        if counter is not None:
            self._counted[shapes] = counter.get_total_flops()
        if self.args.charge_methods:
            self._step_flops += self._counted[shapes] * self.args.world_size

    @contextmanager
    def method_cost(self, method: Method, noted: bool = True) -> Iterator[None]:
        """Adds up the seconds that a method takes besides training; the clock pays for them unless told not to.

        What a device does after it was asked is none of them: where that counts, they are not `noted` here.

        Reference time is charged the seconds themselves, since what a method does has no entry in the table.
        """
        began, self._uncharged, self._in_table = time.perf_counter(), 0.0, 0.0
        with nullcontext() if self.args.charge_methods else self.timekeeper.paused():
            yield
        seconds = time.perf_counter() - began - self._uncharged
        if noted:
            self.costs[method.name] = self.costs.get(method.name, 0.0) + seconds
        if self.reference is not None and self.args.charge_methods:
            self.reference.add_seconds(seconds - self._in_table)

    @contextmanager
    def uncharged(self) -> Iterator[None]:
        """What is done only to measure a method is not charged to it."""
        # The clock is stopped by whoever measures: to stop it waits for the device.
        began = time.perf_counter()
        yield
        self._uncharged += time.perf_counter() - began

    def charge_flops(self, method: Method, flops: float) -> None:
        """Charges FLOPs that a method has spent in the step under way, over all processes."""
        self.method_flops[method.name] = self.method_flops.get(method.name, 0.0) + flops
        if self.args.charge_methods:
            self._step_flops += flops

    def charge_preparation(self) -> None:
        """Charges a new run for what its methods had to find out, or to have trained, before it."""
        paid = {unit: sum(cost[unit] for cost in self.prior.values()) for unit in UNITS}
        self.costs = {name: self.seconds_before(name) for name in self.preparation | self.prior}
        self.method_flops = {name: cost["flops"] for name, cost in self.prior.items()}
        if self.args.charge_methods:
            here = sum(self.preparation.values())
            # What was trained elsewhere knows its reference time; what was found out here takes the time it took.
            reference = here + paid["reference_seconds"] if self.reference else None
            self.clock.tick(
                steps=0, tokens=int(paid["tokens"]), flops=paid["flops"], seconds=here + paid["seconds"],
                reference_seconds=reference,
            )  # fmt: skip
            if self.clock.joules is not None:
                self.clock.joules += paid["joules"]
            self.prepaid = self.clock.fraction

    def seconds_before(self, name: str) -> float:
        """What a method took before a new run, with the training of models that it compares with."""
        return self.preparation.get(name, 0.0) + self.prior.get(name, {}).get("seconds", 0.0)

    def charge_between_steps(self) -> None:
        """Charges the clock for what methods have done since the step, so that a checkpoint made now has it."""
        if self._step_tokens:
            self.timekeeper.settle()
        reference = None if self.reference is None else self.reference.take()
        self.clock.tick(steps=0, tokens=self._step_tokens, flops=self._step_flops, reference_seconds=reference)
        self._step_tokens, self._step_flops = 0, 0.0
