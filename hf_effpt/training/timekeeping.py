"""Time and energy of a run: what is charged to its clock, and what is not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_effpt.core.clock import Clock

from .energy import energy_source
from .meters import synchronize


class Timekeeper:
    """Moves a clock on by the time and energy since the last step.

    Args:
        clock (`Clock`): of the run.
        device (`torch.device`): where the model runs.
        world (`int`): number of processes; they share one time, so that all of them stop at the same step.
    """

    def __init__(self, clock: Clock, device: torch.device, world: int) -> None:
        self.clock, self.device, self.world = clock, device, world
        self.energy = energy_source(device)
        if self.energy is not None:
            clock.joules = 0.0
        self._joules = 0.0  # of this process, not yet added to those of the others
        self.emissions: dict[str, Any] | None = None  # what codecarbon found, if it was asked
        self._is_paused = False
        self.start()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), self.energy.joules() if self.energy is not None else 0.0

    def start(self) -> None:
        """Charges nothing for what was before."""
        self._last = self._now()

    def step(self, *, tokens: int, flops: float, reference_seconds: float | None = None) -> float:
        """Charges an optimizer step and returns its seconds."""
        self.clock.tick(tokens=tokens, flops=flops, reference_seconds=reference_seconds)
        return self._charge()

    def settle(self) -> float:
        """Charges what the device still has to do for the steps so far, and returns the seconds that took."""
        synchronize(self.device)
        return self._charge(settling=True)

    def _charge(self, settling: bool = False) -> float:
        last, self._last = self._last, self._now()
        seconds, joules = (now - then for now, then in zip(self._last, last, strict=True))
        self._joules += joules
        # Steps do not wait for one another's sums unless the budget is in them.
        together = self.world == 1 or settling or self.clock.unit in ("seconds", "joules")
        if self.world > 1 and together:
            spent = torch.tensor([seconds, self._joules], dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(spent)
            seconds, self._joules = spent[0].item() / self.world, spent[1].item()
        self.clock.tick(steps=0, seconds=seconds)
        if together:
            if self.clock.joules is not None:  # `None` where nothing counts, or did not in an earlier part of the run
                self.clock.joules += self._joules
            self._joules = 0.0
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
            synchronize(self.device)  # and what was launched in the block is not
            self._is_paused = False
        skipped = (now - then for now, then in zip(self._now(), before, strict=True))
        self._last = tuple(last + gap for last, gap in zip(self._last, skipped, strict=True))
