"""Average of the weights of a run, which is evaluated and exported in the place of the last ones."""

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest
from hf_effpt.core.settings import In, When, check_settings
from hf_effpt.models.checkpoint_weights import AVERAGE as FILE

from .muon import FOREACH


@dataclass(frozen=True)
class Averaging:
    """Settings in `training.average`, such as `{kind: lawa, k: 5, every: 0.02}`.

    Args:
        kind (`str`): `"lawa"`, the mean of the last `k` weights, one taken after each `every` (Kaddour, 2022); or
            `"ema"`, a mean of all weights in which those that are `span` older weigh 1/e as much.
        k (`int`, *optional*, defaults to 5): number of weights in the mean; so many copies are held in memory.
        every (`float`, *optional*, defaults to 0.02): share of the budget between them.
        span (`float`, *optional*, defaults to 0.02): share of the budget.

    Raises:
        EffptError: for a value that is impossible or has no effect.
    """

    name: ClassVar[str] = "training.average"

    kind: Literal["lawa", "ema"]
    k: Annotated[int, In("[2, inf)"), When(kind="lawa")] = 5
    every: Annotated[float, In("(0, 1)"), When(kind="lawa")] = 0.02
    span: Annotated[float, In("(0, 1)"), When(kind="ema")] = 0.02

    def __post_init__(self) -> None:
        check_settings(self)
        if self.kind == "lawa" and self.k * self.every > 1:
            raise EffptError(
                f"`{self.name}` takes the mean of {self.k} weights, one each {self.every} of the budget, which are "
                "more than there are; set `k` or `every` lower."
            )

    @classmethod
    def of(cls, value: Any) -> "Averaging":
        """Reads the setting; raises an `EffptError` for other keys than those of this class."""
        if not isinstance(value, Mapping) or "kind" not in value:
            raise EffptError(
                f"`{cls.name}` is {value!r}, but needs a `kind`: {{kind: lawa, k: 5, every: 0.02}} or {{kind: ema, "
                "span: 0.02}."
            )
        for key in value:
            if key not in cls.__dataclass_fields__:
                raise EffptError(
                    f"`{cls.name}` has no setting `{key}`: {nearest(key, list(cls.__dataclass_fields__))}"
                )
        return cls(**value)


class WeightAverage:
    """Average of the parameters in the run of `trainer` ([`EffptTrainer`]), if its arguments ask for one.

    It starts anew when a method changes the weights otherwise than by learning. Checkpoints hold it.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.settings = None if trainer.args.average is None else Averaging.of(trainer.args.average)
        self.restart()

    def restart(self) -> None:
        """Forgets all weights seen so far."""
        self.held: deque[list[Tensor]] = deque(maxlen=self.settings.k if self.settings else 1)
        self.seen = 0.0  # fraction of the clock at the last weights

    def begin(self, checkpoint: Path | None) -> None:
        """Starts with nothing, or with what a checkpoint holds.

        Raises `EffptError` if the run of the checkpoint averaged otherwise.
        """
        self.restart()
        if checkpoint is None:
            return
        before, now = None, self.settings and asdict(self.settings)
        held: list[list[Tensor]] = []
        if (checkpoint / FILE).is_file():
            with safe_open(checkpoint / FILE, framework="pt", device=str(self.trainer.args.device)) as saved:
                facts = json.loads(saved.metadata()["facts"])
                before, self.seen = facts["settings"], facts["seen"]
                names = list(self._parameters())
                held = [[saved.get_tensor(f"{index}/{name}") for name in names] for index in range(facts["number"])]
        if before != now:
            raise EffptError(
                f"{checkpoint} was saved with `{Averaging.name}: {before}`, and it is now {now}; resume with that "
                "setting."
            )
        self.held.extend(held)

    def save(self, folder: Path) -> None:
        """Writes the average into the folder of a checkpoint."""
        if self.settings is None:
            return
        names = list(self._parameters())
        tensors = {
            f"{index}/{name}": tensor
            for index, weights in enumerate(self.held)
            for name, tensor in zip(names, weights, strict=True)
        }
        facts = {"settings": asdict(self.settings), "seen": self.seen, "number": len(self.held)}
        save_file(tensors, folder / FILE, metadata={"facts": json.dumps(facts)})

    def _parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.trainer.model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Adds the weights after an optimizer step, if there are `settings`; the run pays for the time."""
        assert self.settings is not None
        began, cost, fraction = time.perf_counter(), self.trainer.cost, self.trainer.clock.fraction
        every, now = self.settings.every, list(self._parameters().values())
        if not self.held or (self.settings.kind == "lawa" and int(fraction / every) > int(self.seen / every)):
            self.held.append([parameter.clone() for parameter in now])
            self.seen = fraction
        elif self.settings.kind == "ema":
            share = -math.expm1((self.seen - fraction) / self.settings.span)
            FOREACH._foreach_lerp_(self.held[0], now, share)
            self.seen = fraction
        if cost.reference_time is not None:
            cost.reference_time.add_seconds(time.perf_counter() - began)

    @contextmanager
    def applied(self) -> Iterator[bool]:
        """Context in which the model has the average as its weights; yields `False` if there is none.

        Outside of it the model has its last weights: `with trainer.average.applied(): trainer.model.export()`.
        """
        if not self.held:
            yield False
            return
        own = list(self._parameters().values())
        last = [parameter.clone() for parameter in own]
        mean = [tensor.clone() for tensor in self.held[0]]
        for weights in list(self.held)[1:]:
            FOREACH._foreach_add_(mean, weights)
        FOREACH._foreach_div_(mean, len(self.held))
        FOREACH._foreach_copy_(own, mean)
        try:
            yield True
        finally:
            FOREACH._foreach_copy_(own, last)
