"""Gates: a small recurrent network that reads a layer's input and decides for each row if the layer runs.

B batch, L row length, D hidden size, P positions in the order of the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from hf_effpt.core.depth import in_place_of, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.precision import KeepsPrecision, without_autocast
from hf_effpt.core.processes import add_up, world
from hf_effpt.core.random import row_keys
from hf_effpt.core.token_losses import TokenLosses, observe_losses

from .routing import Pass, check_inputs

Evaluation = Literal["all", "threshold", "hardened"]

NAME = "layerskip"
WIDTH = 10  # hidden size of the recurrent network, as in the paper's code
OPEN = 0.95  # probability that a gate is open at the start
RECENT = 0.01  # an average over steps moves by at least this share in each


class GateInputs(NamedTuple):
    """Inputs of the gates in one forward pass: tokens that are no padding, and keys of each row's random numbers."""

    real_BL: Tensor
    keys_B: Tensor


class Gates(KeepsPrecision):
    """Gates for all layers of a backbone but the first and the last; the `router` of its layer stack.

    Parameters stay in fp32; settings are those of [`LayerSkip`].
    """

    no_weight_decay = True
    rates: Tensor  # running average of the share of rows on which the layer at each position ran, `(layers,)`
    executed: Tensor  # share of rows and gated layers that ran in the last optimizer step
    baseline: Tensor  # running average of the rows' loss
    steps: Tensor  # number of optimizer steps with gates

    def __init__(self, settings: Any, hidden_size: int, layers: int) -> None:
        super().__init__()
        exact = {"device": "meta", "dtype": torch.float32}  # their constructors would draw from the global generator
        self.narrow = nn.Linear(hidden_size, WIDTH, **exact)
        self.cell = nn.LSTMCell(WIDTH, WIDTH, **exact)
        self.out = nn.Linear(WIDTH, 1, **exact)
        self.register_buffer("rates", torch.ones(layers, **exact))
        self.register_buffer("executed", torch.ones((), **exact))
        self.register_buffer("baseline", torch.zeros((), **exact))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device="meta"))
        self.to_empty(device=torch.get_default_device())
        self.draw()
        self.estimator, self.routing, self.target = settings.learns_by, settings.routing, settings.target
        self.alpha, self.beta = 1.0 if settings.alpha is None else settings.alpha, settings.beta
        self.evaluation, self.harden = settings.evaluation, settings.harden
        self.on, self.step, self.seed = False, 0, 0
        self.share: float = 1.0
        self.forced: float | None = None
        self.reading: Any = None  # a `GateInputs` while the backbone runs
        self._pass: Pass | None = None  # the last one of training, until its penalty is taken
        self._losses: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | None = None  # over the micro-batches of the step under way
        self._handle: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy: everything but the step under way."""
        return {**self.__dict__, "reading": None, "_pass": None, "_losses": None, "_sums": None}

    @torch.no_grad()
    def draw(self) -> None:
        """Initialises weights and buffers, with an own generator seeded from the global seed."""
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        for module in (self.narrow, self.cell, self.out):
            bound = 1 / math.sqrt(module.weight.shape[1] if isinstance(module, nn.Linear) else WIDTH)
            for parameter in module.parameters():
                drawn = torch.empty(parameter.shape, device="cpu", dtype=torch.float32)
                parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
        self.out.bias.fill_(math.log(OPEN / (1 - OPEN)))
        for buffer, value in ((self.rates, 1), (self.executed, 1), (self.baseline, 0), (self.steps, 0)):
            buffer.fill_(value)

    def reset_missing_parameters(self) -> None:
        """Initialises weights and buffers if the loaded weights have none, as those of a stock model."""
        # The parameters have been initialised as in any other layer by now; only a buffer tells if they were loaded.
        if not getattr(self.steps, "_is_hf_initialized", False):
            self.draw()

    def attach(self, backbone: Any) -> None:
        """Makes the gates the submodule `gates` of `backbone`."""
        backbone.gates = self
        self._handle = backbone.register_forward_pre_hook(self.read, with_kwargs=True)
        if self.estimator == "reinforce":
            observe_losses(backbone, NAME, self.take_losses)
        if self.evaluation != "all":
            stack_of(backbone).router = self

    def detach(self, backbone: Any) -> None:
        """Removes the gates from `backbone`."""
        self._handle.remove()
        observe_losses(backbone, NAME, None)
        stack_of(backbone).router = None
        del backbone.gates

    def is_routing(self) -> bool:
        """`True` if layers may run on some rows only in the next forward pass."""
        return self.on if self.training else self.evaluation == "threshold"

    def read(self, backbone: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: reads padding and the keys of random numbers from the inputs of the backbone."""
        self.reading = None
        if stack_of(backbone).router is not self or not self.is_routing():
            return
        check_inputs(backbone.config, kwargs)
        ids_BL = args[0] if args else kwargs.get("input_ids")
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if ids_BL is None:
            raise EffptError(
                "`layerskip` reads padding and the keys of random numbers from token ids; pass `input_ids`, not "
                "`inputs_embeds`."
            )
        pad = backbone.config.pad_token_id
        if mask is not None and getattr(mask, "ndim", 0) == 2:
            real_BL = mask.bool()
        else:
            real_BL = torch.ones_like(ids_BL, dtype=torch.bool) if pad is None else ids_BL != pad
        self.reading = GateInputs(real_BL, row_keys(ids_BL, real_BL))

    def forward(self, layers: list[Any]) -> list[Any]:
        """Returns the layers, or in their place functions that run each on the rows whose gate is open."""
        last = len(layers) - 1
        # A copy without values cannot tell which layers it would keep: it is counted with all.
        if not self.training and self.evaluation == "hardened" and self.forced is None:
            return [layers[position] for position in self.kept(len(layers))]
        if last < 2 or not self.is_routing():
            return layers
        passing = Pass(self, last - 1)
        inner = (in_place_of(layers[at], passing.run, at) for at in range(1, last))
        return [layers[0], *inner, layers[last]]

    def kept(self, layers: int) -> list[int]:
        """Positions of the `layers` layers that `hardened` keeps: the first, the last, and those of a high rate."""
        rates = self.rates.tolist()
        return [at for at in range(layers) if at in (0, layers - 1) or rates[at] >= self.harden]

    def decide(self, hidden_BLD: Tensor, state: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits of the gates, of shape `(batch_size,)`, from the mean input over real tokens, and the new state."""
        rows, length = hidden_BLD.shape[:2]
        if self.reading is None:  # a copy of the model whose FLOPs or time are measured
            share_BL = hidden_BLD.new_full((rows, length), 1 / length, dtype=torch.float32)
        else:
            share_BL = self.reading.real_BL.float()
            share_BL = share_BL / share_BL.sum(dim=1, keepdim=True).clamp(min=1)
        with without_autocast(hidden_BLD):
            pooled_BD = (share_BL[:, None] @ hidden_BLD.detach().float())[:, 0]
            state = self.cell(self.narrow(pooled_BD), state)
            return self.out(state[0])[:, 0], state

    def finish(self, passing: Pass, hidden_BLD: Tensor) -> Tensor:
        """Records a pass that is through its last gated layer; returns the hidden states."""
        if not self.training:
            return hidden_BLD
        ran, pairs = float(passing.ran), float(passing.rows * passing.positions)
        if world() > 1 and self.forced is None:
            # The clocks of all processes are charged alike.
            ran, pairs = add_up(torch.tensor([ran, pairs], device=hidden_BLD.device)).tolist()
            # All processes must have the same parameters with gradients: without this term, a process none of whose
            # rows ran would have none until the penalty.
            open_B = torch.stack(passing.logits).sigmoid().sum(dim=0)
            hidden_BLD = hidden_BLD + (open_B - open_B.detach()).to(hidden_BLD.dtype)[:, None, None]
        self.share = ran / pairs
        self._pass, self._losses = passing, None
        self._add(torch.stack(passing.open).sum(dim=1), passing.rows)
        return hidden_BLD

    def take_losses(self, losses: TokenLosses) -> None:
        """Stores the row losses of the pass that has just ended."""
        sums_B, labels_B = losses.by_row()
        self._losses = sums_B / labels_B.clamp(min=1), labels_B > 0

    def penalty(self) -> Tensor | None:
        """Penalty of the last pass: its distance from `target`, and the reward term of `reinforce`."""
        passing, self._pass = self._pass, None
        if passing is None:
            return None
        logits_PB = torch.stack(passing.logits)
        loss = logits_PB.new_zeros(())
        if self.routing == "bernoulli":
            # Straight through: the share that ran in the last step, with the gradient of this batch's probabilities.
            mean = logits_PB.sigmoid().mean()
            share = self.executed + (mean - mean.detach())
            if self.beta is None:
                loss = loss + self.alpha * (share - self.target) ** 2
            else:
                loss = loss + torch.where(self.executed > self.target, self.beta, -self.beta) * share
        if self.estimator == "reinforce":
            loss = loss + self._reward(logits_PB, torch.stack(passing.open))
        return loss

    def _reward(self, logits_PB: Tensor, open_PB: Tensor) -> Tensor:
        """Loss that makes decisions more probable the lower the row's loss is below the baseline (REINFORCE)."""
        if self._losses is None:
            raise EffptError(
                "`layerskip.estimator` is `reinforce`, but the model has given no losses of rows; only masked "
                "language models with `labels` do. Use `ste_reweighted`."
            )
        losses_B, counts_B = self._losses
        excess_B = torch.where(counts_B & (self.steps > 0), losses_B - self.baseline, 0.0)
        log_PB = -nn.functional.binary_cross_entropy_with_logits(logits_PB, open_PB, reduction="none")
        assert self._sums is not None
        self._sums[-2:] += torch.stack([(losses_B * counts_B).sum(), counts_B.sum()])
        return (excess_B * log_PB.sum(dim=0)).mean()

    def _add(self, open_P: Tensor, rows: int) -> None:
        # Open gates at each position, rows, and the sum and number of losses, which `reinforce` adds.
        sums = torch.zeros(len(open_P) + 3, dtype=torch.float64, device=open_P.device)
        sums[:-3], sums[-3] = open_P.detach(), rows
        self._sums = sums if self._sums is None else self._sums + sums

    @torch.no_grad()
    def settle(self, backbone: Any) -> None:
        """Updates the averages with the micro-batches of a step, over all processes."""
        sums, self._sums = self._sums, None
        if sums is None:
            return
        sums = add_up(sums)
        open_P, (rows, loss, losses) = sums[:-3], sums[-3:]
        recent = (1.0 / (self.steps + 1)).clamp(min=RECENT)
        self.rates[1 : 1 + len(open_P)].lerp_((open_P / rows).float(), recent)
        self.baseline.lerp_(torch.where(losses > 0, loss / losses.clamp(min=1), self.baseline).float(), recent)
        self.executed.copy_(open_P.mean() / rows)
        self.steps += 1
        accumulator_of(backbone).add(layerskip_ran=open_P.sum(), layerskip_pairs=rows * len(open_P))

    def evaluation_policies(self, backbone: Any) -> Mapping[str, Callable[[], AbstractContextManager]]:
        """Contexts for the other `evaluation` settings, by name; empty until gates have learned.

        An evaluation reports the held-out loss in each of them as `held_out_loss_{name}`.
        """
        if self.routing == "topk" or not int(self.steps):
            return {}
        others = [name for name in get_args(Evaluation) if name != self.evaluation]
        return {name: partial(self.evaluating, backbone, name) for name in others}

    @contextmanager
    def evaluating(self, backbone: Any, evaluation: str) -> Iterator[None]:
        """Context in which evaluation runs by another `evaluation` setting."""
        stack = stack_of(backbone)
        before = self.evaluation, stack.router
        self.evaluation, stack.router = evaluation, self
        try:
            yield
        finally:
            self.evaluation, stack.router = before
