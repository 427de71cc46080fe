"""Progressive stacking: train a shallow model, copy its layers on top of themselves, train on (Gong et al., 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import nn

from hf_effpt.core.anatomy import auxiliary_of
from hf_effpt.core.depth import LayerStack, flatten, set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import record
from hf_effpt.core.method import Method, Paper, Run


@dataclass
class Stacking(Method):
    """Starts with `depth` layers and grows to the full depth by copying the trained layers on top (Gong et al., 2019).

    All layers are allocated from the start; those not yet reached do not run, have no gradient and no optimizer state.
    After a growth the old layers keep their optimizer state and the new ones begin with an empty one. The learning
    rate follows the run's clock and is not restarted.

    Args:
        depth (`int`, *optional*): number of layers at the start. By default the full depth divided by two for each
            growth.
        at (`list[float]`, *optional*, defaults to `[0.125, 0.3]`): fractions of the clock at which the model grows,
            rising, in (0, 1). The defaults are those of Kaddour et al. (2023), No Train No Gain.
        auxiliary (`str`, *optional*, defaults to `"keep"`): what becomes of ELECTRA's generator or MC-BERT's
            controller: `keep` gives it its full depth from the start, `grow` has it grow along.

    Raises:
        EffptError: if the fractions are out of order or range, the depth cannot reach the model's by these growths, or
            an auxiliary is to grow along that is not there, or as deep as the model.
    """

    name: ClassVar[str] = "stacking"
    summary: ClassVar[str] = "Trains a shallow model first and grows it by stacking copies of its layers."
    paper: ClassVar[Paper] = Paper(
        title="Efficient Training of BERT by Progressively Stacking",
        authors="Linyuan Gong, Di He, Zhuohan Li, Tao Qin, Liwei Wang, Tie-Yan Liu",
        year=2019,
        bibtex=(
            "@inproceedings{gong2019stacking, title={Efficient Training of {BERT} by Progressively Stacking}, "
            "author={Gong, Linyuan and He, Di and Li, Zhuohan and Qin, Tao and Wang, Liwei and Liu, Tie-Yan}, "
            "booktitle={ICML}, year={2019}}"
        ),
    )

    depth: int | None = None
    at: list[float] = field(default_factory=lambda: [0.125, 0.3])
    auxiliary: Literal["keep", "grow"] = "keep"

    def __post_init__(self) -> None:
        if self.auxiliary not in ("keep", "grow"):
            raise EffptError(f"`stacking.auxiliary` must be `keep` or `grow`, not {self.auxiliary!r}.")
        at = list(self.at)
        if not at or not all(0.0 < fraction < 1.0 for fraction in at) or sorted(set(at)) != at:
            raise EffptError(f"`stacking.at` must hold rising fractions of the clock in (0, 1), not {at}.")
        if self.depth is not None and self.depth < 1:
            raise EffptError(f"`stacking.depth` is the number of layers at the start, at least 1, not {self.depth}.")

    @property
    def settles_at(self) -> float:
        return max(self.at)

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        if config is None:
            return
        self.depths(config.num_hidden_layers)
        if self.auxiliary == "grow":
            auxiliary = config.generator_config() if hasattr(config, "generator_config") else None
            if auxiliary is None or auxiliary.num_hidden_layers != config.num_hidden_layers:
                found = "has none" if auxiliary is None else f"has one of {auxiliary.num_hidden_layers} layers"
                raise EffptError(
                    f"`stacking.auxiliary` is `grow`, but the model {found}; a generator that grows along must be as "
                    f"deep as the model, {config.num_hidden_layers} layers. Use `keep`."
                )

    def depths(self, target: int) -> list[int]:
        """The depth of every stage, the last of which is `target`; each growth at most doubles it.

        Raises:
            EffptError: if no such list exists.
        """
        growths = len(self.at)
        fewest = -(-target // 2**growths)
        stages = [fewest if self.depth is None else self.depth]
        for later in reversed(range(growths)):
            # double, but leave each later growth at least one layer to add
            stages.append(min(2 * stages[-1], target - later))
        if stages[-1] != target or any(after <= before for before, after in pairwise(stages)):
            fix = f"set `stacking.depth` between {fewest} and {target - growths}"
            if target - growths < fewest:
                fix = f"give `stacking.at` fewer fractions, or the model more layers than {target}"
            raise EffptError(
                f"`stacking` cannot grow from {stages[0]} to {target} layers in {growths} growth(s): each growth adds "
                f"at least one layer and at most doubles the depth; {fix}."
            )
        return stages

    def _auxiliaries(self, backbone: Any) -> list[LayerStack]:
        """The layers of what grows along."""
        auxiliary = auxiliary_of(backbone)
        return [stack_of(auxiliary)] if self.auxiliary == "grow" and auxiliary is not None else []

    def inject(self, backbone: Any) -> None:
        stack = stack_of(backbone)
        if backbone.config.layer_order is None:
            set_order(backbone, range(self.depths(len(stack))[0]))
        for along in self._auxiliaries(backbone):
            along.order = stack.order

    def advance(self, backbone: Any, step: int, fraction: float, run: Run | None = None) -> bool:
        stack = stack_of(backbone)
        stages = self.depths(len(stack))
        # A long step may pass two growths at once; then both happen, one after the other.
        for stage in stages[: 1 + sum(fraction >= at for at in self.at)]:
            if (depth := len(stack.order)) < stage:
                for growing in (stack, *self._auxiliaries(backbone)):
                    for index in range(depth, stage):
                        growing.copy_layer(index % depth, index)
                    growing.order = range(stage)
                set_order(backbone, range(stage))
                record(backbone.config, step, self.name, f"grew from {depth} to {stage} layers")
        return False

    def eject(self, backbone: nn.Module) -> None:
        flatten(backbone)
