"""Progressive stacking: train a shallow model, copy its layers on top of themselves, train on (Gong et al., 2019)."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import nn

from hf_effpt.core.anatomy import embeddings_of, generator_of, is_pre_norm, layer_types_of
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import LayerStack, set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import record
from hf_effpt.core.method import Method, Paper
from hf_effpt.core.registry import METHODS
from hf_effpt.core.settings import CountOrZero, In, Inside, When, check_settings

from . import slope
from .ligo import learn_growth
from .operators import OPERATORS, check_types, copy_state, grow
from .plan import depths_for, fractions_for, read_at, read_depth

logger = logging.getLogger(__name__)

Operator = Literal["stack", "interpolate", "midas", "append_top", "identity", "ligo_depth"]
OptimizerState = Literal["keep", "copy", "reset"]


@dataclass
class Stacking(Method):
    """Starts with a shallow model and grows it to the full depth from its own trained layers (Gong et al., 2019).

    All layers are allocated from the start; those not yet reached do not run and have no gradient or optimizer state.
    The learning rate follows the run's clock; after a growth it rises again to where it was.

    Args:
        depth (`int` or `list[int]`, *optional*): number of layers at the start, or of every stage but the last. By
            default the full depth halved for each growth; with `midas` and `append_top`, which add the same number in
            each growth, a quarter of it.
        at (`list[float]` or `str`, *optional*): fractions of the clock at which the model grows, rising, in (0, 1); or
            `prop-1`, `prop-2`, …: stage i takes time in proportion to i to that power (Saunshi et al., 2024). By
            default `[0.125, 0.3]` for two growths (Kaddour et al., 2023), else `prop-1`; with `append_top` equal times
            up to `joint_at`.
        operator (`str`, *optional*, defaults to `"stack"`): source of new layers. `stack` copies the trained ones on
            top of themselves, `interpolate` each next to itself, `midas` the middle block (Saunshi et al., 2024).
            `append_top` copies the top ones; until `joint_at` only the layers added last and the head learn (MSLT,
            Yang et al., 2020). `ligo_depth` learns each layer as a sum of trained ones (Wang et al., 2023). `identity`
            adds layers that compute nothing at first, in pre-LN models only (Shen et al., 2022).
        optimizer_state (`str`, *optional*): `keep` leaves trained layers their state and gives new ones none, `copy`
            copies it along with the layers, `reset` drops it (Gong et al., 2019). By default `keep`, and `reset` with
            `ligo_depth`, which changes all layers.
        rewarmup (`int`, *optional*, defaults to 150): steps in which the learning rate rises again after a growth; at
            most a tenth of the steps before it.
        slope (`float`, *optional*): slope, below 0, of d ln(loss) / d ln(FLOPs) over recent steps from which the model
            grows; `at` are then the latest times. Shen et al. (2022) use -0.0575.
        joint_at (`float`, *optional*): fraction of the clock from which all layers learn with `append_top`; by default
            0.7.
        auxiliary (`str`, *optional*, defaults to `"keep"`): `grow` grows ELECTRA's generator or MC-BERT's controller
            along with the model; `keep` gives it its full depth from the start.

    Raises:
        EffptError: if a value is outside its range, fractions or depths do not rise, the operator does not suit the
            depths or the architecture, or `auxiliary` is `grow` without an auxiliary of the model's depth.
    """

    name: ClassVar[str] = "stacking"
    order: ClassVar[int] = 1
    summary: ClassVar[str] = "Trains a shallow model first and grows it by copies of its layers."
    example: ClassVar[Mapping[str, Any]] = {"depth": 1, "at": [0.3, 0.7]}
    paper: ClassVar[Paper] = Paper.of(
        "@inproceedings{gong2019stacking, title={Efficient Training of {BERT} by Progressively Stacking}, "
        "author={Gong, Linyuan and He, Di and Li, Zhuohan and Qin, Tao and Wang, Liwei and Liu, Tie-Yan}, "
        "booktitle={ICML}, year={2019}}",
    )

    depth: int | list[int] | None = None
    at: list[float] | str | None = None
    operator: Operator = "stack"
    optimizer_state: OptimizerState | None = None
    rewarmup: CountOrZero = 150
    slope: Annotated[float, In("(-inf, 0)", "it is the slope of a falling loss")] | None = None
    joint_at: Annotated[Inside | None, When(operator="append_top")] = None
    auxiliary: Literal["keep", "grow"] = "keep"

    def __post_init__(self) -> None:
        self.at, self.depth = read_at(self.at), read_depth(self.depth)
        check_settings(self)
        if self.operator == "ligo_depth" and self.optimizer_state not in (None, "reset"):
            raise EffptError(
                f"`stacking.optimizer_state` is `{self.optimizer_state}`, but `ligo_depth` changes every layer, so "
                "that no state fits any; leave it out, or set `reset`."
            )
        self._joint, self._settled = 0.7 if self.joint_at is None else self.joint_at, 0.0
        if self.operator == "append_top" and isinstance(self.at, list) and self.at[-1] >= self._joint:
            raise EffptError(
                f"`stacking.at` ends at {self.at[-1]}, but from {self._joint} of the clock all layers learn; grow "
                "earlier, or set `stacking.joint_at` later."
            )

    @property
    def departures(self) -> str:
        if self.operator != "stack":
            return ""
        kept = "" if self.optimizer_state == "reset" else "; theirs begins the optimizer anew at each growth"
        return f"the model is post-norm; one schedule decays over the whole run, theirs anew in each stage{kept}."

    @property
    def measures_loss(self) -> bool:
        return self.operator == "ligo_depth"

    @property
    def settles_at(self) -> float:
        return self._settled

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        if config is None:
            return
        target = config.num_hidden_layers
        last = max(self.fractions(target))  # raises an error for impossible depths
        self._settled = self._joint if self.operator == "append_top" else last
        check_types(self.operator, self.depths(target), layer_types_of(config))
        if self.operator == "identity" and not is_pre_norm(config):
            raise EffptError(
                f"`stacking.operator` `identity` adds layers that change nothing, which only a pre-LN model can: in a "
                f"post-LN one such as `{config.model_type}` a layer without output still normalises. Use `stack`."
            )
        if self.auxiliary == "grow":
            auxiliary = config.generator_config() if hasattr(config, "generator_config") else None
            if auxiliary is None or auxiliary.num_hidden_layers != target:
                found = "has none" if auxiliary is None else f"has one of {auxiliary.num_hidden_layers} layers"
                raise EffptError(
                    f"`stacking.auxiliary` is `grow`, but the model {found}; a generator that grows along must be as "
                    f"deep as the model, {target} layers. Use `keep`."
                )

    def depths(self, target: int) -> list[int]:
        """Depth of every stage, the last being `target`; raises an `EffptError` if the settings allow none."""
        return depths_for(self.operator, self.depth, self.at, target)

    def fractions(self, target: int) -> list[float]:
        """Latest fractions of the clock at which a model of `target` layers grows."""
        until = self._joint if self.operator == "append_top" else 1.0
        return fractions_for(self.at, len(self.depths(target)) - 1, self.operator, until)

    def _auxiliaries(self, backbone: Any) -> list[LayerStack]:
        """Layers of the auxiliary model if it grows along."""
        auxiliary = generator_of(backbone)
        return [stack_of(auxiliary)] if self.auxiliary == "grow" and auxiliary is not None else []

    def inject(self, backbone: Any) -> None:
        stack = stack_of(backbone)
        if getattr(backbone.config, "layer_order", None) is None:
            set_order(backbone, range(self.depths(len(stack))[0]))
        for along in self._auxiliaries(backbone):
            along.order = stack.order
        if self.slope is not None:
            slope.prepare(backbone)

    def adopt(self, backbone: Any) -> None:
        stack = stack_of(backbone)
        if len(stack.order) < len(stack):
            logger.warning("the weights that were loaded are trained, so all %d layers run and none grow", len(stack))
        set_order(backbone, range(len(stack)))

    def frozen(self, backbone: Any, context: RunContext) -> Iterable[nn.Parameter]:
        if self.operator != "append_top" or context.fraction >= self._joint:
            return ()
        stack = stack_of(backbone)
        # The order tells the stage, and checkpoints hold it.
        below = max((stage for stage in self.depths(len(stack)) if stage < len(stack.order)), default=0)
        parts = [*embeddings_of(backbone), *(stack[index] for index in stack.order[:below])] if below else []
        return [parameter for part in parts for parameter in part.parameters()]

    def advance(self, backbone: Any, context: RunContext) -> bool:
        stack, fraction = stack_of(backbone), context.fraction
        if fraction >= 1.0 or self._is_superseded(backbone.config):
            return False  # no time left to train new layers, or another method has cut them
        stages, at = self.depths(len(stack)), self.fractions(len(stack))
        reached = sum(fraction >= growth for growth in at)
        if self._has_slowed(backbone, context):
            reached = max(reached, sum(stage <= len(stack.order) for stage in stages))
        # A long step may pass two growths; then both happen in turn.
        for stage in stages[: 1 + reached]:
            if len(stack.order) < stage:
                self._grow(backbone, stack, stage, context)
        return False

    def _is_superseded(self, config: Any) -> bool:
        """`True` once a later method has changed the model, whose layers then no longer grow."""
        acted = {event["method"] for event in getattr(config, "events", None) or []}
        return any(self.order < METHODS[name].order < Method.order for name in acted if name in METHODS)

    def _has_slowed(self, backbone: Any, context: RunContext) -> bool:
        """`True` if the loss falls more slowly than `slope`."""
        stack = stack_of(backbone)
        # While the learning rate still rises, that and not the depth flattens the loss.
        if self.slope is None or context.loss is None or context.warming_up or len(stack.order) == len(stack):
            return False
        slope.add(backbone, context.loss(), context.flops)
        return context.step % slope.EVERY == 0 and (found := slope.slope(backbone)) is not None and found > self.slope

    def _grow(self, backbone: Any, stack: LayerStack, stage: int, context: RunContext) -> None:
        before = stack.order
        sources = OPERATORS[self.operator](len(before), stage, self.depths(len(stack))[0])
        pairs = []
        for growing in (stack, *self._auxiliaries(backbone)):
            pairs += grow(growing, sources, silent=self.operator == "identity")
        if self.operator == "ligo_depth":
            if not context.is_live:
                raise EffptError("`stacking.operator` `ligo_depth` learns its growths from text; use a Trainer.")
            learn_growth(backbone, stack, sources, list(stack.order), list(before), context)
        if context.is_live:
            kind = self.optimizer_state or ("reset" if self.operator == "ligo_depth" else "keep")
            if kind == "copy":
                copy_state(context.optimizer, pairs)
            elif kind == "reset":
                context.optimizer.state.clear()
        if self.slope is not None:
            getattr(backbone, slope.NAME).zero_()
        set_order(backbone, stack.order)
        what = f"grew from {len(before)} to {stage} layers by {self.operator}"
        record(backbone.config, context.step, self.name, what, rewarmup=min(self.rewarmup, context.step // 10))

    def eject(self, backbone: Any) -> None:
        backbone._buffers.pop(slope.NAME, None)
        super().eject(backbone)
