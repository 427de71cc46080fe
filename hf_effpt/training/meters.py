"""Meters of a run: throughput, utilisation, and the time of each part of a step."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

PARTS = ("data", "forward", "backward", "optimizer")


@lru_cache(maxsize=8)
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large matrix products on `device` in `dtype`, measured once: the 100 % of utilisation."""
    size, products = (8192, 4) if device.type == "cuda" else (1024, 1)
    # a separate generator leaves the run's random numbers unchanged
    left = torch.rand(size, size, device=device, generator=torch.Generator(device)).to(dtype)
    best = spent = 0.0
    for _ in range(6):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(products):
            torch.matmul(left, left)
        synchronize(device)
        took = time.perf_counter() - began
        best, spent = max(best, products * 2 * size**3 / took), spent + took
        if spent > 1.0:  # processors that cannot multiply in bfloat16 take seconds for one product
            break
    return best


def synchronize(device: torch.device) -> None:
    """Waits until `device` has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def record_event() -> torch.cuda.Event:
    """Records a timed event in the current stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class StepMeter:
    """Adds up the time of the parts of a step; on a GPU with events, so that no step waits for `device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._began: dict[str, float] = {}  # running parts on a CPU
        self._recorded: dict[str, torch.cuda.Event] = {}  # running parts on a GPU
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.reset()

    def reset(self) -> None:
        """Begins a new window."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._events.clear()
        self.tokens, self.flops, self.seconds, self.selecting = 0, 0.0, 0.0, 0.0

    def begin(self, part: str) -> None:
        if self.device.type == "cuda":
            self._recorded[part] = record_event()
        else:
            self._began[part] = time.perf_counter()

    def end(self, part: str) -> None:
        if part in self._recorded:
            self._events.append((part, self._recorded.pop(part), record_event()))
        elif part in self._began:
            self._seconds[part] += time.perf_counter() - self._began.pop(part)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Adds the time of the block to `part`."""
        self.begin(part)
        yield
        self.end(part)

    def add(self, *, tokens: int, flops: float, seconds: float) -> None:
        """Adds a finished optimizer step."""
        self.tokens, self.flops, self.seconds = self.tokens + tokens, self.flops + flops, self.seconds + seconds

    def summary(self, dtype: torch.dtype, devices: int = 1) -> dict[str, float]:
        """Tokens per second, utilisation, and share of each part in the window; waits for the device once."""
        synchronize(self.device)
        for part, began, ended in self._events:
            self._seconds[part] += began.elapsed_time(ended) / 1e3
        self._events.clear()
        if not self.seconds:
            return {}
        # The training step is forward and backward, so backward is the rest of it.
        self._seconds["backward"] = max(0.0, self._seconds.pop("training_step", 0.0) - self._seconds["forward"])
        parts, self.selecting = PARTS, self._seconds.get("selection", 0.0)
        if "selection" in self._seconds:  # measured inside `data`
            self._seconds["data"] -= self._seconds["selection"]
            parts = (*PARTS, "selection")
        rates = {"tokens_per_second": self.tokens / self.seconds}
        rates["mfu"] = self.flops / self.seconds / (devices * peak_flops(self.device, dtype))
        return rates | {f"time_{part}": self._seconds[part] / self.seconds for part in parts}
