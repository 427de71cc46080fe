"""Lottery tickets: prune single weights in rounds, rewinding the others, or learn which of them to keep."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import nn

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import events_of, record
from hf_effpt.core.method import Method, Paper, start_after
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.settings import Count, CountOrZero, Inside, Positive, When, check_settings
from hf_effpt.core.shares import first_step, part_of
from hf_effpt.core.snapshot import snapshot_of

from .masks import Masks, prunable, running_matrices
from .ranking import Criterion, best, scores_of
from .rounds import BEGAN, METHOD, begin, note_prunings, prunings, rounds_of
from .signs import Signs, beginning
from .supermask import Supermask

logger = logging.getLogger(__name__)

Learn = Literal["magnitude", "supermask"]
PRUNES = When(learn="magnitude", ticket=None)


@dataclass
class Lottery(Method):
    """Prunes single weights in rounds and rewinds the others (Frankle and Carbin, 2019; Chen et al., 2020).

    For research: zeros scattered over a matrix make no step faster and no model smaller. The clock is divided into
    equal phases, one more than there are rounds. At the end of each but the last, the weights of smallest magnitude
    over all layers are pruned, everything else is rewound, and optimizer and learning rate start again. Alternatively
    a supermask is learned (Zhou et al., 2019): weights stay as they are, and scores decide which of them are kept.

    Args:
        sparsity (`float`, *optional*, defaults to 0.7): share, in (0, 1), of the weights of attention, feed-forward
            blocks and pooler that is pruned in the end.
        rounds (`int`, *optional*, defaults to 7): number of prunings, at least 1, of the same number of weights each.
        rewind_to (`int`, *optional*, defaults to 0): step of the first phase whose weights are rewound to.
        criterion (`str`, *optional*, defaults to `"large_final"`): weights that are kept: those of `large_final`
            magnitude; `large_final_same_sign`, with the sign they are rewound to; those of largest
            `magnitude_increase`; or `random` ones, as a control.
        signs (`str`, *optional*, defaults to `"rewind"`): values that pruned matrices are rewound to: their weights
            (`rewind`), or one standard deviation of them with their sign (`keep_sign`) or a random one
            (`random_sign`). A supermask has these constants from its start.
        learn (`str`, *optional*, defaults to `"magnitude"`): `magnitude` trains and prunes weights; `supermask`
            freezes the matrices that would be pruned, and learns masks of them.
        rescale (`bool`, *optional*, defaults to `False`): If `True`, with `supermask`, divides each matrix by the
            share of it that is kept.
        score_learning_rate (`float`, *optional*, defaults to 0.1): peak learning rate of the scores of `supermask`,
            which follows the run's schedule.
        ticket (`str`, *optional*): file of masks, from `SparseTicket.save`, to train with from the start; nothing is
            pruned.

    Raises:
        EffptError: if a value is outside its range or has no effect beside others, the ticket does not fit the model,
            or another method would train layers unequally.
    """

    name: ClassVar[str] = METHOD
    order: ClassVar[int] = 2
    summary: ClassVar[str] = "Research: prunes single weights in rounds and rewinds, or learns a mask; saves no time."
    example: ClassVar[Mapping[str, Any]] = {"sparsity": 0.6, "rounds": 3}
    conflicts: ClassVar[frozenset[str]] = frozenset({"earlybert", "compress"})
    paper: ClassVar[Paper] = Paper.of(
        "@inproceedings{chen2020lottery, title={The Lottery Ticket Hypothesis for Pre-trained {BERT} Networks}, "
        "author={Chen, Tianlong and Frankle, Jonathan and Chang, Shiyu and Liu, Sijia and Zhang, Yang and Wang, "
        "Zhangyang and Carbin, Michael}, booktitle={NeurIPS}, year={2020}}",
        arxiv="2007.12223",
    )

    sparsity: Annotated[Inside, PRUNES] = 0.7
    rounds: Annotated[Count, PRUNES] = 7
    rewind_to: Annotated[CountOrZero, PRUNES] = 0
    criterion: Annotated[Criterion, PRUNES] = "large_final"
    signs: Annotated[Signs, When(ticket=None)] = "rewind"
    learn: Annotated[Learn, When(ticket=None)] = "magnitude"
    rescale: Annotated[bool, When(learn="supermask")] = False
    score_learning_rate: Annotated[Positive, When(learn="supermask")] = 0.1
    ticket: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.ticket is not None:
            self.ticket = os.fspath(self.ticket)
        self._start, self._config = 0.0, None

    @property
    def departures(self) -> str:
        if self.ticket is not None:
            return ""
        if not self.prunes:
            return "embeddings, norms and heads train as usual; the paper freezes all weights."
        own = "" if self.criterion == "large_final" else " (Zhou et al., whose criterion it is, within each layer)"
        return (
            "the first phase trains the whole model, where theirs cuts before any training; the learning rate decays "
            "in each phase; the head and all else is rewound, where theirs keeps the trained head; weights are ranked "
            f"over all layers together, as theirs{own}, but without a pooler, which masked language models lack."
        )

    @property
    def _left(self) -> int:
        """Number of prunings that are still to be made of the model."""
        return max(0, self.rounds - prunings(self._config))

    @property
    def prunes(self) -> bool:
        """`True` if the method prunes weights itself."""
        return self.learn == "magnitude" and self.ticket is None

    @property
    def needs_snapshot(self) -> bool:
        return self.prunes and self._left > 0

    def least_steps(self, budget: int) -> int:
        """Least budget, in steps, with which the first phase reaches the step that is rewound to."""
        return first_step(self._start, budget) + self.rewind_to * (self._left + 1) if self.needs_snapshot else 0

    def against_next_tokens(self, until: float) -> str:
        return (
            "rewinds the weights to those of its first steps, and with them what next tokens have taught" * self.prunes
        )

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        self._start, self._config = start_after(self, None, others), config
        for other in ("layerdrop", "layerskip"):
            if other in others and self.ticket is None:
                raise EffptError(
                    f"`lottery` compares the weights of all layers up to the end of the run, and with `{other}` some "
                    "learn less often than others; remove one of them. With the masks of a `lottery.ticket` both can "
                    "run."
                )
        if "stacking" in others and not self.prunes:
            wrong = "`lottery.ticket` is" if self.ticket else "`lottery.learn` is `supermask`, whose weights are"
            raise EffptError(
                f"{wrong} for a model of full depth, and `stacking` would copy the layers of a shallow one over it; "
                "remove one of them. Pruning by magnitude begins after the last growth."
            )

    def inject(self, backbone: Any) -> None:
        if self.learn == "supermask":
            masks: Masks = Supermask(backbone, self.score_learning_rate, self.rescale)
        else:
            masks = Masks(backbone, self.ticket)
        masks.train(backbone.training).attach(backbone)
        if self.ticket is not None and not next(backbone.parameters()).is_meta:
            masks.impress(backbone)

    def prepare(self, backbone: Any, context: RunContext) -> None:
        if self.prunes and self._left < self.rounds:
            said = "an earlier run has pruned this model; of %d rounds of `lottery` %d are left"
            logger.warning(said, self.rounds, self._left)

    def adopt(self, backbone: Any) -> None:
        if self.learn == "magnitude":
            backbone.masks.impress(backbone)

    def schedule(self, backbone: Any, context: RunContext) -> None:
        config, masks = backbone.config, backbone.masks
        if self.learn == "supermask":
            if self.signs != "rewind" and not events_of(config, METHOD):
                self._set_beginning(backbone, context.seed)
                record(config, context.step, METHOD, f"{BEGAN} with constant weights, {self.signs}")
            masks.draw(running_matrices(backbone), context.step, context.seed)
        elif self.needs_snapshot and self._start == 0.0 and rounds_of(config) is None:
            begin(config, context.step, context.fraction, self.rounds)
        accumulator_of(backbone).add(lottery_left=masks.left(backbone), lottery_weights=masks.size(backbone))

    def frozen(self, backbone: Any, context: RunContext) -> Iterable[Any]:
        """The matrices under a supermask stay as they are."""
        return [linear.weight for linear in prunable(backbone).values()] if self.learn == "supermask" else ()

    def advance(self, backbone: Any, context: RunContext) -> bool:
        if self.learn == "supermask":
            return False
        backbone.masks.impress(backbone)  # some optimizers move weights without a gradient
        step, fraction = context.step, context.fraction
        if not context.is_live or not self.needs_snapshot or fraction >= 1.0:
            return False  # nothing to rewind to, or no time left to train
        now = rounds_of(backbone.config)
        if now is None:
            if fraction >= self._start:
                snapshot_of(context.model).take(context.model)
                context.optimizer.state.clear()
                begin(backbone.config, step, fraction, self.rounds)
            return False
        if self.rewind_to and step == now.step + self.rewind_to and not now.done:
            snapshot_of(context.model).take(context.model)
        if due := now.due(self.rounds, fraction):
            if step < now.step + self.rewind_to:
                raise EffptError(
                    f"`lottery.rewind_to` is {self.rewind_to}, but the first phase had {step - now.step} steps; set "
                    "it lower, have fewer `rounds`, or give a longer budget."
                )
            self._prune(backbone, due, context)
        return not self.needs_snapshot

    def _prune(self, backbone: Any, due: int, context: RunContext) -> None:
        """Makes `due` prunings at once, and rewinds the remaining weights."""
        masks: Masks = backbone.masks
        matrices = running_matrices(backbone)
        final = {name: linear.weight.detach().clone() for name, linear in matrices.items()}
        every = masks.kept()
        kept = {name: every[name].clone() for name in matrices}
        snapshot_of(context.model).put_back(context.model)
        first = {name: linear.weight for name, linear in matrices.items()}
        scores = scores_of(self.criterion, final, first, context.seed + context.step)
        done = prunings(backbone.config) + due
        size = masks.size(backbone)
        removed = part_of(self.sparsity * done / self.rounds, size)
        masks.put(best(scores, kept, size - removed))
        self._set_beginning(backbone, context.seed)
        masks.impress(backbone)
        context.optimizer.state.clear()
        note_prunings(backbone.config, context.step, context.fraction, self.rounds, due, self.sparsity)

    def _set_beginning(self, backbone: Any, seed: int) -> None:
        """Replaces present weights by those that training begins from."""
        matrices = running_matrices(backbone)
        begun = beginning({name: linear.weight for name, linear in matrices.items()}, self.signs, seed)
        for name, linear in matrices.items():
            linear.weight.data.copy_(begun[name])

    def eject(self, backbone: Any) -> None:
        backbone.masks.detach(backbone)
        super().eject(backbone)

    def metrics(self, backbone: Any, sums: Mapping[str, float]) -> dict[str, float]:
        """`lottery_sparsity`, the share of zeros in pruned matrices; for a supermask, as sampled."""
        total = sums.get("lottery_weights")
        return {"lottery_sparsity": 1.0 - sums["lottery_left"] / total} if total else {}

    def cost_signature(self, backbone: nn.Module) -> str:
        return f"lottery {self.learn}{' rescaled' if self.rescale else ''}"
