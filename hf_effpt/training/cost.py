"""Cost of a run: the work of its steps and methods, and the part charged to the clock."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method
from hf_effpt.core.processes import sum_on_host
from hf_effpt.core.row_method import CostReport, ScoreFunction

from .flops import FlopCounter
from .meters import StepMeter
from .muon import Muon
from .preparing import agreed
from .reference_models import UNITS
from .reference_time_meter import ReferenceMeter
from .reference_time_table import ReferenceTimes
from .timekeeping import Timekeeper

NOTHING: dict[str, float] = dict.fromkeys(UNITS, 0.0)


class CostMeter:
    """Charges the clock of a run for the tokens, FLOPs, time and energy of steps and methods.

    `args` are the [`EffptTrainingArguments`]; `autocast()` makes the context in which the run computes its loss.
    Tokens and FLOPs are counted in each process, whose rows may be of other lengths, and summed when they are charged.
    """

    def __init__(self, args: Any, autocast: Callable[[], AbstractContextManager]) -> None:
        self.args, self.autocast = args, autocast
        self.meter, self.counter = StepMeter(args.device), FlopCounter()
        self.dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        self.prepare_seconds: dict[str, float] = {}  # of `prepare`, by method, and of the model's `start`
        self.prepare_flops: dict[str, float] = {}
        self.start: dict[str, Any] | None = None  # the model's [`StartCost`]
        self.reference_costs: dict[str, dict[str, float]] = {}  # of reference models, by method

    def expect(self, seconds: dict[str, float], start: Any, accelerator: Any) -> None:
        """Notes what a new run is charged for before its first step, equally in all processes.

        `seconds` are of the preparation of methods, by name; `start` is the model's [`StartCost`], or `None`.
        """
        if start is None:
            self.prepare_seconds = agreed(seconds, accelerator)
            return
        self.prepare_seconds = agreed(seconds | {"start": start.seconds}, accelerator)
        self.prepare_flops = {"start": start.flops}
        self.start = asdict(start) | {"seconds": self.prepare_seconds["start"]}

    def begin(self, clock: Clock, totals: dict[str, Any] | None) -> None:
        """Starts the clock at the upfront cost of a new run, or at the totals of a checkpoint.

        Raises `EffptError` for reference time with several processes, or a resumed run that did not count the budget's
        unit.
        """
        self.clock, self.timekeeper = clock, Timekeeper(clock, self.args.device, self.args.world_size)
        self.reference_time = self._reference_meter() if clock.unit == "reference_seconds" else None
        self.step_tokens, self.step_flops, self.micro_flops, self.learned_tokens = 0, 0.0, 0.0, 0
        self.method_seconds: dict[str, float] = {}
        self.method_flops: dict[str, float] = {}  # of all processes
        self._flops_here: dict[str, float] = {}  # of methods in this process, not yet summed
        self.upfront_fraction = 0.0  # fraction of the budget spent before the first step
        self._unpaid = 0.0  # seconds of a method's block that only measure its cost
        self._in_table = 0.0  # seconds of a method's block that the reference table charges
        self._counted: dict[tuple, int] = {}  # FLOPs of methods' own losses by shapes, within one `advance`
        self._own_flops: dict[tuple, float] = {}  # FLOPs of methods' own products, by key
        if totals is not None:
            clock.restore(totals)
            self.method_seconds = dict(totals.get("costs") or {})
            self.method_flops = dict(totals.get("method_flops") or {})
            if getattr(clock, clock.unit) is None:
                raise EffptError(
                    f"The budget is {clock.budget:,g} {clock.unit}, but the run to be resumed has not counted its "
                    "own; resume it with a budget in steps, tokens, flops or time."
                )
            self.upfront_fraction = totals.get("prepaid", 0.0)
            self.start = totals.get("start")
        elif self.prepare_seconds or self.reference_costs:
            self._charge_upfront()

    def totals(self) -> dict[str, Any]:
        """State that [`begin`] restores from a checkpoint."""
        own = {"costs": self.method_seconds, "prepaid": self.upfront_fraction, "method_flops": self.method_flops}
        return self.clock.as_dict() | own | ({} if self.start is None else {"start": self.start})

    def _reference_meter(self) -> ReferenceMeter:
        if self.args.world_size > 1:
            raise EffptError(
                f"The budget {self.args.budget} is reference time, which counts the operations of one process, not of "
                f"{self.args.world_size}; start one, or give tokens, flops or time."
            )
        times = ReferenceTimes.open(self.args.reference_times, self.args.device)
        return ReferenceMeter(times, self.dtype, self.autocast, self.timekeeper.paused)

    # Steps.

    def charge_micro_batch(self, model: Any, batch: Mapping[str, Tensor]) -> None:
        """Adds the forward and backward pass of a micro-batch."""
        self.micro_flops = self.counter.count(model, batch)
        self.step_flops += self.micro_flops
        if self.reference_time is not None:
            self.reference_time.add_training(model, batch)

    def charge_step(self, model: Any, optimizer: Any) -> None:
        """Charges the clock for the optimizer step just done."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        if isinstance(optimizer, Muon):
            self.step_flops += optimizer.take_flops()
        if self.reference_time is not None:
            self.reference_time.add_optimizer(model, optimizer, self.args.max_grad_norm)
        reference = self.reference_time.take() if self.reference_time else None
        tokens, flops, learned = self._take()
        seconds = self.timekeeper.step(tokens=tokens, flops=flops, reference_seconds=reference)
        self.meter.add(tokens=learned, flops=flops, seconds=seconds)

    def _take(self) -> tuple[int, float, int]:
        """Tokens, FLOPs and tokens learned from of all processes since the last call; also charges methods."""
        here = [self.step_tokens, self.step_flops, self.learned_tokens, *self._flops_here.values()]
        tokens, flops, learned, *own = here if self.args.world_size == 1 else sum_on_host(here)
        for name, spent in zip(self._flops_here, own, strict=True):
            self.method_flops[name] = self.method_flops.get(name, 0.0) + spent
            self._flops_here[name] = 0.0
        self.step_tokens, self.step_flops, self.learned_tokens = 0, 0.0, 0
        return int(tokens), flops, int(learned)

    def charge_between_steps(self) -> None:
        """Charges the clock for the work of methods since the step, so that a checkpoint made now includes it."""
        if self.step_tokens:
            self.timekeeper.settle()
        reference = self.reference_time.take() if self.reference_time else None
        tokens, flops = 0, 0.0
        if self.step_tokens or self.step_flops or any(self._flops_here.values()):  # in all processes or in none
            tokens, flops, _ = self._take()
        self.clock.tick(steps=0, tokens=tokens, flops=flops, reference_seconds=reference)

    # Methods.

    def _charge_upfront(self) -> None:
        """Charges a new run for its start, preparation of its methods and training of their reference models."""
        paid = {unit: sum(cost[unit] for cost in self.reference_costs.values()) for unit in UNITS}
        self.method_seconds = {
            name: self.upfront_seconds(name) for name in self.prepare_seconds | self.reference_costs
        }
        self.method_flops = self.prepare_flops | {name: cost["flops"] for name, cost in self.reference_costs.items()}
        if self.args.charge_methods:
            here = sum(self.prepare_seconds.values())
            # Reference models have a recorded reference time; preparation counts its measured seconds.
            reference = here + paid["reference_seconds"] if self.reference_time else None
            self.clock.tick(
                steps=0, tokens=int(paid["tokens"]), flops=sum(self.method_flops.values()),
                seconds=here + paid["seconds"], reference_seconds=reference,
            )  # fmt: skip
            if self.clock.joules is not None:
                self.clock.joules += paid["joules"]
            self.upfront_fraction = self.clock.fraction

    def upfront_seconds(self, name: str) -> float:
        """Seconds of a method before the first step, including the training of its reference models."""
        return self.prepare_seconds.get(name, 0.0) + self.reference_costs.get(name, NOTHING)["seconds"]

    def report(self, name: str) -> CostReport:
        """Cost of the run so far, and of the method `name`."""
        own = self.method_seconds.get(name, 0.0), self.method_flops.get(name, 0.0)
        before = self.upfront_seconds(name), self.reference_costs.get(name, NOTHING)["flops"]
        return CostReport(self.clock.seconds, self.clock.flops, *own, *before, self.args.charge_methods)

    @contextmanager
    def method_time(self, method: Method, noted: bool = True) -> Iterator[None]:
        """Adds the seconds of the block to a method's; the clock pays for them if methods are charged.

        Excludes asynchronous GPU work; pass `noted=False` where CUDA events time it. Reference time is charged the
        measured seconds, except for work marked by [`in_table`].
        """
        began, self._unpaid, self._in_table = time.perf_counter(), 0.0, 0.0
        with nullcontext() if self.args.charge_methods else self.timekeeper.paused():
            yield
        seconds = time.perf_counter() - began - self._unpaid
        if noted:
            self.method_seconds[method.name] = self.method_seconds.get(method.name, 0.0) + seconds
        if self.reference_time is not None and self.args.charge_methods:
            self.reference_time.add_seconds(seconds - self._in_table)

    def charge_flops(self, method: Method, flops: float) -> None:
        """Charges a method for FLOPs of this process in the current step."""
        self._flops_here[method.name] = self._flops_here.get(method.name, 0.0) + flops
        if self.args.charge_methods:
            self.step_flops += flops

    def forget_counts(self) -> None:
        """Forgets the FLOPs of methods' own losses, since the model may have changed."""
        self._counted = {}

    @contextmanager
    def charged(self, model: Any, batch: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Context in which a method computes the model's loss and gradients by `parameters`; charges their FLOPs."""
        documents = batch.get("documents")
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in batch.items() if name != "documents")
        shapes += () if documents is None else (documents.products, documents.pairs)
        if shapes not in self._counted:  # counting is slow
            began = time.perf_counter()
            self._counted[shapes] = self.counter.count_gradients(model, batch, parameters)
            self._unpaid += time.perf_counter() - began
        with self.autocast():
            yield
        if self.args.charge_methods:
            self.step_flops += self._counted[shapes]

    @contextmanager
    def count_own_flops(self, method: Method, *key: Any) -> Iterator[None]:
        """Charges a method for the FLOPs of matrix products in the block, counted once for equal keys.

        No model may run in it, since compiled code cannot be counted.
        """
        known = (method.name, *key)
        if known not in self._own_flops:
            with FlopCounterMode(display=False) as counter:
                yield
            self._own_flops[known] = counter.get_total_flops()
        else:
            yield
        self.charge_flops(method, self._own_flops[known])

    def charge_scoring(
        self, method: Method, key: str, model: Any, batch: Mapping[str, Tensor], function: ScoreFunction, own: bool
    ) -> None:
        """Charges a method for `function(model, batch)` without gradients; `own` is `True` for the run's model."""
        # The clock is paused only while timing, since pausing waits for the device.
        began = time.perf_counter()
        flops = self.counter.count_work(model, batch, function, (key, own))
        if self.reference_time is not None and self.args.charge_methods:
            self.reference_time.add_work(key, model, batch, function)
        self._unpaid += time.perf_counter() - began
        self.charge_flops(method, flops)

    @contextmanager
    def in_table(self) -> Iterator[None]:
        """Marks work that reference time charges by its table instead of by measured seconds."""
        began, unpaid = time.perf_counter(), self._unpaid
        yield
        self._in_table += time.perf_counter() - began - (self._unpaid - unpaid)
