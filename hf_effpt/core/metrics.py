"""Metrics of forward passes, summed on the device and read when the run logs."""

from typing import Any

import torch
from torch import Tensor


class MetricAccumulator:
    """Running sums by name. Adding to them never waits for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor | float) -> None:
        """Adds scalars to the sums of their names. A mean is kept as two sums, numerator and denominator."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().double()
            known = self.sums.get(name)
            self.sums[name] = value if known is None else known + value

    def take(self) -> dict[str, Tensor]:
        """Returns the sums since the last call and starts again from zero."""
        taken, self.sums = self.sums, {}
        return taken


def accumulator_of(backbone: Any) -> MetricAccumulator:
    """The accumulator of `backbone`, made at the first call."""
    return backbone.__dict__.setdefault("metric_accumulator", MetricAccumulator())
