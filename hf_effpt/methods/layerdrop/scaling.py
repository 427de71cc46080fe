"""Factors on the change that a layer makes to the hidden states, which make up for the steps that skip it."""

from collections.abc import Iterator, Mapping

import numpy as np

from hf_effpt.core.depth import LayerStack


class Scales(Mapping[int, float]):
    """Scale of 1 / (1 - rate) by layer index; empty in evaluation.

    Args:
        stack ([`LayerStack`]): layers, whose mode is read at every look-up.
        rates (`np.ndarray` of shape `(depth,)`): probability that the layer at each position is skipped.
    """

    def __init__(self, stack: LayerStack, rates: np.ndarray) -> None:
        self._stack = stack
        kept = zip(stack.order, (1.0 - rates).tolist(), strict=True)
        # A layer that is always skipped has no scale to be trained with.
        self._values = {index: 1.0 / share for index, share in kept if share}

    @property
    def _present(self) -> dict[int, float]:
        return self._values if self._stack.training else {}

    def __getitem__(self, index: int) -> float:
        return self._present[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._present)

    def __len__(self) -> int:
        return len(self._present)
