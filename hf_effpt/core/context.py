"""State of a run, as the hooks of a method see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .errors import EffptError

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class RunContext:
    """State of a run at one hook.

    `schedule`, `frozen` and `select` get the fields up to `model`; `advance` gets all but the text; `prepare` gets
    `seed` and the text. Fields that a hook does not get have their defaults.

    Args:
        step (`int`): number of finished optimizer steps.
        fraction (`float`): share of the clock's budget that is spent, from 0 to 1.
        seed (`int`, *optional*, defaults to 0): seed of the run.
        model (`nn.Module`, *optional*): the training model; called with a batch, its output has the `loss`.
        optimizer (`torch.optim.Optimizer`, *optional*): holds the state of the model's parameters.
        loss (`Callable[[], Tensor]`, *optional*): returns the mean loss of the last step over micro-batches and
            processes, a scalar on the device. All processes have to call it together.
        flops (`float`, *optional*, defaults to 0.0): FLOPs spent so far.
        draw_batches (`Callable[[int], Iterator]`, *optional*): yields that number of batches of training rows, on the
            device, outside the run's own order. Each process gets its own. Their tokens are charged.
        charged (`Callable`, *optional*): takes a batch and parameters, and returns the context in which a method
            computes the model's loss on it and gradients by them: in the run's precision, with its FLOPs charged.
            Equal shapes must cost the same.
        warming_up (`bool`, *optional*, defaults to `False`): `True` while the learning rate still rises.
        open_text (`Callable`, *optional*): opens the training text; read it as `text`.
    """

    step: int
    fraction: float
    seed: int = 0
    model: Any = None
    optimizer: Any = None
    loss: Callable[[], Tensor] | None = None
    flops: float = 0.0
    draw_batches: Callable[[int], Iterator[dict[str, Tensor]]] | None = None
    charged: Callable[[Batch, Sequence[nn.Parameter]], AbstractContextManager] | None = None
    warming_up: bool = False
    open_text: Callable[[], Any] | None = None

    @property
    def is_live(self) -> bool:
        """`True` in `advance` of a run, where there are an optimizer and batches to draw."""
        return self.optimizer is not None

    @property
    def text(self) -> Any:
        """Training text for `prepare` (a `data.training_text.TrainingText`); raises an `EffptError` elsewhere."""
        if self.open_text is None:
            raise EffptError("There is no training text here; it is at hand in `prepare` only, when a run begins.")
        return self.open_text()
