"""Figures that a model's forward pass leaves behind, summed on the device and read when the run logs."""

from typing import Any

import torch
from torch import Tensor


class MetricAccumulator:
    """Running sums by name; adding to one never waits for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor | float) -> None:
        """Adds scalars; a mean is two of them, the sum and what it is divided by."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().double()
            known = self.sums.get(name)
            self.sums[name] = value if known is None else known + value

    def take(self) -> dict[str, Tensor]:
        """The sums since the last call."""
        taken, self.sums = self.sums, {}
        return taken


def accumulator_of(backbone: Any) -> MetricAccumulator:
    """The tally of `backbone`, made at the first call."""
    return backbone.__dict__.setdefault("metric_accumulator", MetricAccumulator())
