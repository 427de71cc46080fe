"""Selective layer update: for each row of a batch a gate decides whether a layer runs (Wang et al., 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor, nn

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import PRUNING, set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper, start_after
from hf_effpt.core.objectives import objective_of
from hf_effpt.core.settings import Fraction, In, NotNegative, Share, When, check_settings

from .gates import Evaluation, Gates

Estimator = Literal["ste_full", "ste_executed", "ste_reweighted", "reinforce"]
Routing = Literal["bernoulli", "topk"]

FIRST = 0.1  # share of the clock before the gates act, so that layers learn first


@dataclass
class LayerSkip(Method):
    """Learns for each row and layer if the layer runs on the row or passes it unchanged (Wang et al., 2019).

    Experimental: E2-Train's selective layer update, made for convolutional networks; no result on language models is
    published. A small recurrent network reads the mean input of a layer and opens its gate or not. A layer runs only
    on rows whose gate is open, and costs less for it. The first and the last layer always run.

    Args:
        target (`float`, *optional*, defaults to 0.6): share, in (0, 1], of rows and gated layers that should run.
        alpha (`float`, *optional*): weight, at least 0, of the squared distance from `target` in the loss; by default
            1.
        beta (`float`, *optional*): weight, above 0, of the paper's penalty instead: the share that runs, with a plus
            sign above `target` and a minus sign below. The paper's 1e-5 on a sum over 128 rows and 35 layers is 0.045
            here.
        estimator (`str`, *optional*): gradient of the gates. `"ste_reweighted"`, the default, is straight-through from
            the rows that ran, divided by their probability; `"ste_executed"`, the default with `routing` `"topk"`,
            does not divide. `"ste_full"` computes all rows and saves nothing; `"reinforce"` compares the loss of a row
            with a running average, for masked language modelling only.
        routing (`str`, *optional*, defaults to `"bernoulli"`): `"bernoulli"` draws if a row runs; `"topk"` runs the
            share `target` of a micro-batch's rows, of the highest gates, so that shapes stay the same and nothing
            waits for the device.
        after (`float`, *optional*): fraction of the clock, in [0, 1), from which gates act. By default 0.1, or the
            time from which the other methods no longer change the architecture, if that is later.
        evaluation (`str`, *optional*, defaults to `"all"`): layers that run in evaluation and are exported: `"all"`;
            `"hardened"`, without those that ran too rarely; or `"threshold"`, for each row those whose gate is above
            one half. A model of the last kind has no stock export.
        harden (`float`, *optional*, defaults to 0.5): share of recent rows, in (0, 1], on which `"hardened"` layers
            must have run.

    Raises:
        EffptError: if a value is outside its range, settings exclude each other, the model has no layer between the
            first and the last, or `after` lies before the end of another method's changes.
    """

    name: ClassVar[str] = "layerskip"
    summary: ClassVar[str] = "Experimental: learns which layers each row can do without, and does not run them."
    example: ClassVar[Mapping[str, Any]] = {"target": 0.4}
    conflicts: ClassVar[frozenset[str]] = frozenset({"layerdrop"})
    paper: ClassVar[Paper] = Paper.of(
        "@inproceedings{wang2019e2train, title={{E2-Train}: Training State-of-the-art {CNNs} with Over 80\\% "
        "Energy Savings}, author={Wang, Yue and Jiang, Ziyu and Chen, Xiaohan and Xu, Pengfei and Zhao, Yang and "
        "Lin, Yingyan and Wang, Zhangyang}, booktitle={NeurIPS}, year={2019}}",
        arxiv="1910.13349",
    )

    target: Annotated[Share, When(routing="topk"), When(alpha=(None, In("(0, inf)")))] = 0.6
    alpha: Annotated[NotNegative | None, When(routing="bernoulli", beta=None)] = None
    beta: Annotated[
        Annotated[float, In("(0, inf)", "its sign follows the share that runs")] | None,
        When(routing="bernoulli", alpha=None),
    ] = None
    estimator: Estimator | None = None
    routing: Routing = "bernoulli"
    after: Fraction | None = None
    evaluation: Evaluation = "all"
    harden: Annotated[Share, When(routing="bernoulli")] = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        self._start = FIRST if self.after is None else self.after
        if self.routing != "topk":
            return
        if self.estimator in ("ste_reweighted", "reinforce"):
            raise EffptError(
                f"`layerskip.routing` `topk` draws nothing, so there are no probabilities for the estimator "
                f"`{self.estimator}` to go by; leave `estimator` out, or use `ste_executed` or `ste_full`."
            )
        if self.evaluation != "all":
            raise EffptError(
                f"`layerskip.routing` `topk` ranks the rows of a batch, so a row by itself says nothing of whether a "
                f"layer runs, as `evaluation` `{self.evaluation}` needs; leave `evaluation` out."
            )

    @property
    def departures(self) -> str:
        return (
            "all layers share one projection in front of the gates, where the paper's networks have one each; the "
            "last layer has no gate; layers that a row skips are not computed for it; evaluation draws nothing."
        )

    @property
    def learns_by(self) -> Estimator:
        """Estimator of the gradient; its default depends on `routing`."""
        return self.estimator or ("ste_executed" if self.routing == "topk" else "ste_reweighted")

    def against_next_tokens(self, until: float) -> str:
        return "decides by the mean of a row which layers it runs, and so by the tokens that are to be predicted"

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        start = start_after(self, self.after, others)
        self._start = max(FIRST, start) if self.after is None else start
        if config is None:
            return
        if config.num_hidden_layers < 3:
            raise EffptError(
                f"`layerskip` always runs the first and the last layer, and the model has {config.num_hidden_layers}; "
                "give it at least 3, or remove `layerskip`."
            )
        if self.learns_by == "reinforce" and objective_of(config) != "mlm":
            raise EffptError(
                f"`layerskip.estimator` `reinforce` needs the loss of each row, which the objective "
                f"`{objective_of(config)}` does not tell; use `ste_reweighted`."
            )

    def prepare(self, backbone: Any, context: RunContext) -> None:
        """Refuses a run without an export."""
        self._check_export()

    def _check_export(self) -> None:
        if self.evaluation == "threshold":
            raise EffptError(
                "`layerskip.evaluation` is `threshold`, which no stock model does, so that there is no export; train "
                "and export with `all` (the loss with `threshold` is measured besides) or `hardened`. To use a model "
                "with `threshold`, load a training checkpoint so, and keep it with `save_pretrained`."
            )

    def inject(self, backbone: Any) -> None:
        stack = stack_of(backbone)
        gates = Gates(self, backbone.config.hidden_size, len(stack))
        gates.to(backbone.device).train(backbone.training).attach(backbone)

    def schedule(self, backbone: Any, context: RunContext) -> None:
        gates = backbone.gates
        gates.on, gates.step, gates.seed = context.fraction >= self._start, context.step, context.seed
        stack_of(backbone).router = gates if gates.on else None

    def advance(self, backbone: Any, context: RunContext) -> bool:
        backbone.gates.settle(backbone)
        return False

    def penalty(self, backbone: Any) -> Tensor | None:
        return backbone.gates.penalty()

    def eject(self, backbone: Any) -> None:
        self._check_export()
        stack, gates = stack_of(backbone), backbone.gates
        if self.evaluation == "hardened":
            kept, rates = gates.kept(len(stack.order)), gates.rates.tolist()[: len(stack.order)]
            said = {"strategy": "hardened", "layers": len(stack.order), "kept": kept, "chosen_by": {"rates": rates}}
            backbone.__dict__[PRUNING] = said
            set_order(backbone, [stack.order[position] for position in kept])
        gates.detach(backbone)
        super().eject(backbone)

    def metrics(self, backbone: Any, sums: Mapping[str, float]) -> dict[str, float]:
        """`layerskip_executed`, the share of rows and gated layers that ran."""
        pairs = sums.get("layerskip_pairs")
        return {"layerskip_executed": sums["layerskip_ran"] / pairs} if pairs else {}

    def cost_signature(self, backbone: nn.Module) -> str:
        return f"layerskip {self.learns_by} {self.routing}" if stack_of(backbone).router is not None else ""
