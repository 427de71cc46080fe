"""Time and energy of a run: what is charged to its clock, and what is not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_effpt.core.clock import Clock

from .meters import EnergyMeter, synchronize


class Timekeeper:
    """Moves a clock on by the time and energy since the last step.

    Args:
        clock (`Clock`): of the run.
        device (`torch.device`): where the model runs.
        world (`int`): number of processes; they share one time, so that all of them stop at the same step.
    """

    def __init__(self, clock: Clock, device: torch.device, world: int) -> None:
        self.clock, self.device, self.world = clock, device, world
        try:
            self.energy: EnergyMeter | None = EnergyMeter(device)
        except (ImportError, RuntimeError):
            self.energy = None
        self._is_paused = False
        self.start()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), self.energy.joules() if self.energy is not None else 0.0

    def start(self) -> None:
        """Charges nothing for what was before."""
        self._last = self._now()

    def step(self, *, tokens: int, flops: float) -> float:
        """Charges an optimizer step and returns its seconds."""
        self.clock.tick(tokens=tokens, flops=flops)
        return self._charge()

    def settle(self) -> float:
        """Charges what the device still has to do for the steps so far, and returns the seconds that took."""
        synchronize(self.device)
        return self._charge()

    def _charge(self) -> float:
        last, self._last = self._last, self._now()
        seconds, joules = (now - then for now, then in zip(self._last, last, strict=True))
        if self.world > 1 and self.clock.unit in ("seconds", "joules"):
            spent = torch.tensor([seconds, joules], dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(spent)
            seconds, joules = spent[0].item() / self.world, spent[1].item()
        self.clock.tick(steps=0, seconds=seconds)
        if self.energy is not None:
            self.clock.joules = (self.clock.joules or 0.0) + joules
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Charges nothing for the block: measuring and saving are not part of training."""
        if self._is_paused:  # evaluating several datasets evaluates each of them
            yield
            return
        synchronize(self.device)  # what was launched before is still to be charged
        before, self._is_paused = self._now(), True
        try:
            yield
        finally:
            self._is_paused = False
        skipped = (now - then for now, then in zip(self._now(), before, strict=True))
        self._last = tuple(last + gap for last, gap in zip(self._last, skipped, strict=True))
