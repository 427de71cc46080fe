"""Time and energy of a run, charged to its clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_effpt.core.clock import Clock

from .energy import energy_source
from .meters import synchronize


class Timekeeper:
    """Charges the clock of a run on `device` for the time and energy since the last step.

    The processes, `world` in number, share one time, so that all stop at the same step.
    """

    def __init__(self, clock: Clock, device: torch.device, world: int) -> None:
        self.clock, self.device, self.world = clock, device, world
        self.energy = energy_source(device)
        if self.energy is not None:
            clock.joules = 0.0
        self._joules = 0.0  # of this process, not yet summed over processes
        self.emissions: dict[str, Any] | None = None  # codecarbon's totals, if it ran
        self._is_paused = False
        self.start()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), self.energy.joules() if self.energy is not None else 0.0

    def start(self) -> None:
        """Starts timing now; earlier time is not charged."""
        self._last = self._now()

    def step(self, *, tokens: int, flops: float, reference_seconds: float | None = None) -> float:
        """Charges an optimizer step and returns its seconds."""
        self.clock.tick(tokens=tokens, flops=flops, reference_seconds=reference_seconds)
        return self._charge()

    def settle(self) -> float:
        """Waits for the device's pending work, charges it, and returns its seconds."""
        synchronize(self.device)
        return self._charge(settling=True)

    def _charge(self, settling: bool = False) -> float:
        last, self._last = self._last, self._now()
        seconds, joules = [now - then for now, then in zip(self._last, last, strict=True)]
        self._joules += joules
        # Processes synchronize at each step only for a budget in seconds or joules.
        together = self.world == 1 or settling or self.clock.unit in ("seconds", "joules")
        if self.world > 1 and together:
            spent = torch.tensor([seconds, self._joules], dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(spent)
            seconds, self._joules = spent[0].item() / self.world, spent[1].item()
        self.clock.tick(steps=0, seconds=seconds)
        if together:
            if self.clock.joules is not None:  # `None` if not counted here or earlier in the run
                self.clock.joules += self._joules
            self._joules = 0.0
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Charges nothing for the block, such as measuring or saving."""
        if self._is_paused:  # evaluation of several datasets nests
            yield
            return
        synchronize(self.device)  # earlier GPU work is charged
        before, self._is_paused = self._now(), True
        try:
            yield
        finally:
            synchronize(self.device)  # GPU work of the block is not charged
            self._is_paused = False
        skipped = [now - then for now, then in zip(self._now(), before, strict=True)]
        self._last = tuple([last + gap for last, gap in zip(self._last, skipped, strict=True)])
