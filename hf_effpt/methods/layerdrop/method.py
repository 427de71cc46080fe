"""LayerDrop: each layer is skipped with probability p, drawn anew for every optimizer step (Fan et al., 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from hf_effpt.core.depth import flatten, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper


@dataclass
class LayerDrop(Method):
    """Skips each layer with probability `p` in training and runs all of them in evaluation (Fan et al., 2020).

    A skipped layer does not run: it costs nothing, gets no gradient, and its optimizer state and weight decay rest.
    Outputs are not rescaled. One draw serves all micro-batches of an optimizer step and all processes.

    Args:
        p (`float`, *optional*, defaults to 0.2): probability, in [0, 1), that a layer is skipped.
        after (`float`, *optional*): fraction of the clock, in [0, 1), from which layers are dropped. By default it
            starts when the other methods no longer change the architecture, which is at once if there are none.

    Raises:
        EffptError: if a value is outside its range, or `after` lies before the end of another method's changes.
    """

    name: ClassVar[str] = "layerdrop"
    summary: ClassVar[str] = "Skips each layer with probability p in training; the export keeps them all."
    paper: ClassVar[Paper] = Paper(
        title="Reducing Transformer Depth on Demand with Structured Dropout",
        authors="Angela Fan, Edouard Grave, Armand Joulin",
        year=2020,
        arxiv="1909.11556",
        bibtex=(
            "@inproceedings{fan2020layerdrop, title={Reducing Transformer Depth on Demand with Structured Dropout}, "
            "author={Fan, Angela and Grave, Edouard and Joulin, Armand}, booktitle={ICLR}, year={2020}}"
        ),
    )

    p: float = 0.2
    after: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.p < 1.0:
            raise EffptError(f"`layerdrop.p` must be in [0, 1), not {self.p}: at 1 no layer would ever train.")
        if self.after is not None and not 0.0 <= self.after < 1.0:
            raise EffptError(f"`layerdrop.after` is a fraction of the clock in [0, 1), not {self.after}.")
        self._start = self.after or 0.0

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        settled = max((other.settles_at for other in others.values()), default=0.0)
        if self.after is not None and self.after < settled:
            raise EffptError(
                f"`layerdrop.after` is {self.after}, but another method changes the architecture until {settled} of "
                f"the clock; leave `after` out (it then starts by itself) or set it to at least {settled}."
            )
        self._start = settled if self.after is None else self.after

    def inject(self, backbone: nn.Module) -> None:
        stack_of(backbone)

    def schedule(self, backbone: nn.Module, step: int, fraction: float, seed: int) -> None:
        stack = stack_of(backbone)
        stack.dropped = self.draw(len(stack), step, seed) if fraction >= self._start else frozenset()

    def draw(self, layers: int, step: int, seed: int) -> frozenset[int]:
        """The layers to skip in `step`: a pure function of `(seed, step)` that leaves the global generators alone."""
        drawn = np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, step])).random(layers)
        return frozenset(int(index) for index in np.flatnonzero(drawn < self.p))

    def eject(self, backbone: nn.Module) -> None:
        flatten(backbone)
