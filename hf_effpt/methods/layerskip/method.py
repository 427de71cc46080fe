"""Selective layer update: for each row of a batch a gate decides whether a layer runs (Wang et al., 2019)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import PRUNING, set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper, start_after
from hf_effpt.core.objectives import objective_of

from .gates import Evaluation, Gates

Estimator = Literal["ste_full", "ste_executed", "ste_reweighted", "reinforce"]
Routing = Literal["bernoulli", "topk"]

FIRST = 0.1  # share of the clock before the gates start, so that there is something to learn from


@dataclass
class LayerSkip(Method):
    """Learns, for each row and layer, whether the layer runs or lets the row pass as it is (Wang et al., 2019).

    Experimental: the selective layer update of E2-Train, made for convolutional networks, on transformers; no result
    of it on language models is published. A small recurrent network reads the mean input of a layer. A layer runs on
    the rows whose gate is open only, and costs as much less. The first and the last layer always run.

    Args:
        target (`float`, *optional*, defaults to 0.6): share, in (0, 1], of rows and gated layers that are to run.
        alpha (`float`, *optional*): weight, at least 0, of the squared distance from `target` in the loss, by default
            1.
        beta (`float`, *optional*): the paper's penalty instead: so much times the share that runs, with a plus sign
            above `target` and a minus sign below. Its 1e-5 of a sum over 128 rows and 35 layers is 0.045 of a share.
        estimator (`str`, *optional*): how the gates learn from the loss. By default `"ste_reweighted"`:
            straight-through, from the rows that ran, divided by how probable that was; with `routing` `"topk"`
            `"ste_executed"`, which does not divide. `"ste_full"` computes all rows and saves nothing; `"reinforce"`
            compares the loss of a row with what is usual, for masked language modelling only.
        routing (`str`, *optional*, defaults to `"bernoulli"`): `"bernoulli"` draws whether a row runs, by its gate;
            `"topk"` runs the share `target` of a micro-batch's rows whose gates are most open, so that shapes stay
            the same and nothing waits for the device.
        after (`float`, *optional*): fraction of the clock, in [0, 1), from which there are gates. By default 0.1, or
            when the other methods no longer change the architecture, if that is later.
        evaluation (`str`, *optional*, defaults to `"all"`): what runs in evaluation, and so what is exported: `"all"`
            layers; `"hardened"`, all but those that ran too seldom, which the export lacks; or `"threshold"`, those
            whose gate is above one half, for evaluating a model with gates. Such a model has no stock export.
        harden (`float`, *optional*, defaults to 0.5): share of rows, in (0, 1], that a layer must have run on lately
            to be kept by `"hardened"`.

    Raises:
        EffptError: if a value is outside its range, settings exclude each other, the model has no layer between the
            first and the last, or `after` lies before the end of another method's changes.
    """

    name: ClassVar[str] = "layerskip"
    summary: ClassVar[str] = "Experimental: learns which layers each row can do without, and does not run them."
    conflicts: ClassVar[frozenset[str]] = frozenset({"layerdrop"})
    paper: ClassVar[Paper] = Paper(
        title="E2-Train: Training State-of-the-art CNNs with Over 80% Energy Savings",
        authors="Yue Wang, Ziyu Jiang, Xiaohan Chen, Pengfei Xu, Yang Zhao, Yingyan Lin, Zhangyang Wang",
        year=2019,
        arxiv="1910.13349",
        bibtex=(
            "@inproceedings{wang2019e2train, title={{E2-Train}: Training State-of-the-art {CNNs} with Over 80\\% "
            "Energy Savings}, author={Wang, Yue and Jiang, Ziyu and Chen, Xiaohan and Xu, Pengfei and Zhao, Yang and "
            "Lin, Yingyan and Wang, Zhangyang}, booktitle={NeurIPS}, year={2019}}"
        ),
    )

    target: float = 0.6
    alpha: float | None = None
    beta: float | None = None
    estimator: Estimator | None = None
    routing: Routing = "bernoulli"
    after: float | None = None
    evaluation: Evaluation = "all"
    harden: float = 0.5

    def __post_init__(self) -> None:
        for key in ("target", "harden"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise EffptError(f"`layerskip.{key}` is a share in (0, 1], not {getattr(self, key)}.")
        if self.alpha is not None and not 0.0 <= self.alpha < math.inf:
            raise EffptError(f"`layerskip.alpha` is the weight of a penalty, at least 0, not {self.alpha}.")
        if self.alpha is not None and self.beta is not None:
            raise EffptError(
                f"`layerskip.alpha` ({self.alpha}) and `layerskip.beta` ({self.beta}) weigh two penalties, of which "
                "one is used; leave one of them out."
            )
        if self.beta is not None and not 0.0 < self.beta < math.inf:
            raise EffptError(
                f"`layerskip.beta` must be above 0, not {self.beta}: its sign is chosen by the share that runs; leave "
                "it out for the penalty of `alpha`."
            )
        if self.after is not None and not 0.0 <= self.after < 1.0:
            raise EffptError(f"`layerskip.after` is a fraction of the clock in [0, 1), not {self.after}.")
        for key, valid in (("estimator", Estimator), ("routing", Routing), ("evaluation", Evaluation)):
            value = getattr(self, key)
            if value not in get_args(valid) and not (key == "estimator" and value is None):
                raise EffptError(f"`layerskip.{key}` must be one of {', '.join(get_args(valid))}, not {value!r}.")
        if self.routing == "topk":
            self._check_topk()
        self._start = FIRST if self.after is None else self.after

    def _check_topk(self) -> None:
        if self.estimator in ("ste_reweighted", "reinforce"):
            raise EffptError(
                f"`layerskip.routing` `topk` draws nothing, so there are no probabilities for the estimator "
                f"`{self.estimator}` to go by; leave `estimator` out, or use `ste_executed` or `ste_full`."
            )
        for key in ("alpha", "beta"):
            if getattr(self, key) is not None:
                raise EffptError(f"`layerskip.routing` `topk` runs `target` of the rows by itself; leave `{key}` out.")
        if self.evaluation != "all":
            raise EffptError(
                f"`layerskip.routing` `topk` ranks the rows of a batch, so a row by itself says nothing of whether a "
                f"layer runs, as `evaluation` `{self.evaluation}` needs; leave `evaluation` out."
            )

    @property
    def learns_by(self) -> Estimator:
        """The estimator, which follows `routing` unless it is set."""
        return self.estimator or ("ste_executed" if self.routing == "topk" else "ste_reweighted")

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
        """Refuses a run at whose end there would be nothing to export."""
        if self.evaluation == "threshold":
            raise EffptError(
                "`layerskip.evaluation` is `threshold`, which no stock model does, and a run leaves a stock model; "
                "train with `all` (the loss with `threshold` is measured besides) or `hardened`, and load a training "
                "checkpoint with `threshold` to use it so. `save_pretrained` keeps such a model."
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
        if self.evaluation == "threshold":
            raise EffptError(
                "With `layerskip.evaluation` `threshold` the model decides in evaluation which layers run, which no "
                "stock model does; keep it with `save_pretrained`, or load it with `all` or `hardened` to export it."
            )
        stack, gates = stack_of(backbone), backbone.gates
        if self.evaluation == "hardened":
            kept, rates = gates.kept(len(stack.order)), gates.rates.tolist()[: len(stack.order)]
            said = {"strategy": "hardened", "layers": len(stack.order), "kept": kept, "chosen_by": {"rates": rates}}
            backbone.__dict__[PRUNING] = said
            set_order(backbone, [stack.order[position] for position in kept])
        gates.detach(backbone)
        super().eject(backbone)

    def metrics(self, backbone: Any, sums: Mapping[str, float]) -> dict[str, float]:
        """`layerskip_executed`, of the rows and gated layers the share that ran."""
        pairs = sums.get("layerskip_pairs")
        return {"layerskip_executed": sums["layerskip_ran"] / pairs} if pairs else {}

    def cost_signature(self, backbone: nn.Module) -> str:
        return f"layerskip {self.learns_by} {self.routing}" if stack_of(backbone).router is not None else ""
