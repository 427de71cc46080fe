"""LayerDrop: each layer is skipped with some probability, drawn anew for every optimizer step (Fan et al., 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from torch import nn

from hf_effpt.core.anatomy import is_pre_norm
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper, start_after
from hf_effpt.core.random import LAYERS, step_rng
from hf_effpt.core.settings import Count, Fraction, In, When, check_settings

from .heads import remove_heads, set_heads
from .scaling import Scales
from .schedules import DEPARTURES, SCHEDULES

Rate = Literal["constant", "pld", "progressive"]
Scaling = Literal["none", "training"]
# With neither layers nor heads dropped the method is switched off, and its settings are kept for when it is on.
OF_LAYERS = (When(p=(None, In("(0, 1)"))), When(heads=0.0))


@dataclass
class LayerDrop(Method):
    """Skips layers at random in training and runs all of them in evaluation (Fan et al., 2020).

    A skipped layer does not run: it costs nothing, has no gradient, and its optimizer state and weights stay as they
    are. All micro-batches and processes of an optimizer step skip the same layers.

    Args:
        p (`float`, *optional*): probability of skipping a layer, in [0, 1), as scheduled by `rate`. By default 0.2
            with the constant rate, else 0.5.
        after (`float`, *optional*): fraction of the clock, in [0, 1), from which layers are dropped. By default the
            time from which the other methods no longer change the architecture.
        rate (`str`, *optional*, defaults to `"constant"`): `"constant"` skips each layer with probability `p` (Fan et
            al., 2020); `"pld"` rises quickly from 0 to `p` for the last layer, and to less for those below
            (progressive layer dropping; Zhang and He, 2020); `"progressive"` falls in four equal stages from a mean of
            `p` to 0, and always runs first and last layer (RaPTr; Panigrahi et al., 2024).
        group (`int`, *optional*, defaults to 1): number of neighbouring layers that share one draw; divides the depth.
        heads (`float`, *optional*, defaults to 0.0): probability, in [0, 1), of dropping an attention head in an
            optimizer step; a regulariser that saves no time.
        scaling (`str`, *optional*, defaults to `"none"`): compensation for skipped layers, in pre-norm models only:
            `"training"` multiplies the change that a layer makes by 1 / (1 - rate) in training.

    Raises:
        EffptError: if a value is outside its range, does not suit the depth or the architecture, or `after` lies
            before the end of another method's changes.
    """

    name: ClassVar[str] = "layerdrop"
    summary: ClassVar[str] = "Skips layers at random in training; the export keeps them all."
    example: ClassVar[Mapping[str, Any]] = {"p": 0.4}
    paper: ClassVar[Paper] = Paper.of(
        "@inproceedings{fan2020layerdrop, title={Reducing Transformer Depth on Demand with Structured Dropout}, "
        "author={Fan, Angela and Grave, Edouard and Joulin, Armand}, booktitle={ICLR}, year={2020}}",
        arxiv="1909.11556",
    )

    p: Annotated[float, In("[0, 1)", "at 1 no layer would ever train")] | None = None
    after: Fraction | None = None
    rate: Annotated[Rate, *OF_LAYERS] = "constant"
    group: Annotated[Count, *OF_LAYERS] = 1
    heads: Annotated[float, In("[0, 1)", "at 1 no head would ever train")] = 0.0
    scaling: Annotated[Scaling, *OF_LAYERS] = "none"

    def __post_init__(self) -> None:
        check_settings(self)
        if self.p is None:
            self.p = 0.2 if self.rate == "constant" else 0.5
        self._p: float = self.p
        self._start, self._end = self.after or 0.0, 1.0

    @property
    def departures(self) -> str:
        return DEPARTURES.get(self.rate, "") if self.scaling == "none" else ""

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        # LayerDrop prepares a model for the loss of layers, so it comes before compression.
        before: dict[str, Any] = dict(others)
        compress = before.pop("compress", None)
        self._end = 1.0 if compress is None else compress.starts_at
        self._start = start_after(self, self.after, before)
        if self._start >= self._end:
            raise EffptError(
                f"`layerdrop` would run from {self._start} of the clock, but it has to end at {self._end}, before the "
                "model is cut; set `layerdrop.after` earlier, have the model grow earlier or be cut later."
            )
        if config is not None:
            self._check_depth(config.num_hidden_layers)
            if self.scaling != "none" and not is_pre_norm(config):
                raise EffptError(
                    f"`layerdrop.scaling` is `{self.scaling}`, but the layers of a `{config.model_type}` normalise "
                    "what they give out (post-norm), so that there is no change to scale; leave `scaling` out."
                )

    def _check_depth(self, layers: int) -> None:
        if layers % self.group:
            valid = [str(size) for size in range(1, layers + 1) if layers % size == 0]
            raise EffptError(
                f"`layerdrop.group` is {self.group}, which does not divide the model's {layers} layers; use "
                f"{', '.join(valid[:-1])}{' or ' if valid[:-1] else ''}{valid[-1]}."
            )
        most = max(0.0, 1.0 - 2.0 * self.group / layers)  # where two groups always run
        if self.rate == "progressive" and self._p > most:
            grouped = f" in groups of {self.group}" if self.group > 1 else ""
            raise EffptError(
                f"`layerdrop.p` is {self.p}, but with `rate` `progressive` the first and last of {layers} layers"
                f"{grouped} always run; set it to {most:.3g} at most, or give the model more layers."
            )

    def inject(self, backbone: nn.Module) -> None:
        stack_of(backbone)

    def schedule(self, backbone: nn.Module, context: RunContext) -> None:
        stack = stack_of(backbone)
        progress = (context.fraction - self._start) / (self._end - self._start)
        started = progress >= 0.0 and (context.fraction < self._end or self._end == 1.0)
        skipped = self.draw(len(stack.order), context.step, context.seed, progress) if started else frozenset()
        stack.dropped = frozenset(stack.order[position] for position in skipped)
        if self.scaling != "none":
            rates = self.rates(len(stack.order), progress) if started else np.zeros(len(stack.order))
            stack.scales = Scales(stack, rates)
        if self.heads:
            set_heads(stack, self.heads if started else 0.0, context.step, context.seed)

    def rates(self, depth: int, progress: float) -> np.ndarray:
        """Probability of skipping the layer at each of `depth` positions, of shape `(depth,)`.

        `progress`, from 0 to 1, is the elapsed share of the time in which layers are dropped.
        """
        units = -(-depth // self.group)
        return np.repeat(SCHEDULES[self.rate](self._p, units, progress), self.group)[:depth]

    def draw(self, depth: int, step: int, seed: int, progress: float = 0.0) -> frozenset[int]:
        """Positions to skip in `step`; a pure function of its arguments."""
        generator = step_rng(seed, step, LAYERS)
        drawn = np.repeat(generator.random(-(-depth // self.group)), self.group)[:depth]
        return frozenset(int(position) for position in np.flatnonzero(drawn < self.rates(depth, progress)))

    def cost_signature(self, backbone: nn.Module) -> str:
        return "masked heads" if self.heads else ""

    def eject(self, backbone: nn.Module) -> None:
        if self.heads:
            remove_heads(stack_of(backbone))
        super().eject(backbone)
