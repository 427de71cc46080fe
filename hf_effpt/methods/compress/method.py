"""Train large, then compress: a large model is cut early and trained further (Li et al., 2020)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hf_effpt.core.anatomy import first_stays
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import depth_of, set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import Scores, WidthGates, gate_scores, gate_sum, gates_of, loss_importance, magnitude
from hf_effpt.core.ledger import events_of, record
from hf_effpt.core.method import Method, Paper, start_after
from hf_effpt.core.random import CUTS, step_rng
from hf_effpt.core.settings import Count, In, Inside, NotNegative, Share, When, check_settings
from hf_effpt.core.shares import part_of
from hf_effpt.core.ticket import Ticket, draw, unit_of
from hf_effpt.core.width import cut_state, cut_width

from .distill import dismiss, teach, teach_again, teacher_of
from .plan import Size, at_random, cut_at, size_after, thinned

logger = logging.getLogger(__name__)

Importance = Literal["michel", "gates", "magnitude", "random"]

# Default shares to keep: 8 of 12 heads, and 0.62 times the FLOPs of the encoder (Chen et al., 2021).
HEADS, NEURONS = 2 / 3, 0.6
STRETCH = 0.1  # share of the clock, before the first cut, in which gates learn
L1 = 1e-4  # weight of the sum of the gates in the loss; a learning rate of 0.01 is enough to move them
GATE_RATE = 0.01


@dataclass
class Compress(Method):
    """Trains a large model, cuts layers, heads and neurons away, and trains the rest further (Li et al., 2020).

    It is one run on one clock: the learning rate keeps falling over the cuts and is fully decayed at the end. The
    remaining parts keep their weights and optimizer state. Heads and neurons that are cut leave model and optimizer.

    Args:
        depth (`int`, *optional*): number of layers after the last cut, at equal distances in the order in which they
            run; by default all.
        head_keep (`float`, *optional*): share, in (0, 1], of the attention heads of each layer to keep. By default 2/3
            if `depth` and `ffn_keep` are left out, too, else all.
        ffn_keep (`float`, *optional*): share, in (0, 1], of the feed-forward neurons of all layers together to keep.
            By default 0.6 if `depth` and `head_keep` are left out, too, else all.
        importance (`str`, *optional*, defaults to `"michel"`): criterion for heads and neurons to keep: `michel`, the
            absolute slope of each row's loss, mean over 8 batches of training text (Michel et al., 2019); `gates`,
            that learn in the last tenth of the clock before the first cut (Chen et al., 2021); `magnitude`, the norm
            of their weights; or, as the control, `random`, with the widths of `michel`, and random layers. Without a
            cut of width only `random` has an effect.
        at (`float`, *optional*, defaults to 0.7): fraction of the clock, in (0, 1), of the first cut.
        rounds (`int`, *optional*, defaults to 1): number of cuts, each of the same number of parts.
        until (`float`, *optional*): fraction of the clock of the last of several cuts; by default halfway between `at`
            and the end.
        distill (`float`, *optional*, defaults to 0): weight, at least 0, of a loss term from the first cut on: the
            mean squared difference, over tokens that are no padding, of the last hidden states from those of the large
            model as it was before the first cut. The choice of this term is ours. 0 has no teacher.

    Raises:
        EffptError: if a value is outside its range, a share would cut nothing, a layer would keep no head or
            too few neurons, the model has too few layers or is narrow already, or another method still grows it at
            `at`.
    """

    name: ClassVar[str] = "compress"
    order: ClassVar[int] = 2
    summary: ClassVar[str] = "Trains a large model first, and cuts it down to a smaller one on the way."
    example: ClassVar[Mapping[str, Any]] = {"depth": 2, "at": 0.72, "rounds": 2}
    conflicts: ClassVar[frozenset[str]] = frozenset({"earlybert", "lottery"})
    paper: ClassVar[Paper] = Paper.of(
        "@inproceedings{li2020train, title={Train Large, Then Compress: Rethinking Model Size for Efficient "
        "Training and Inference of Transformers}, author={Li, Zhuohan and Wallace, Eric and Shen, Sheng and Lin, "
        "Kevin and Keutzer, Kurt and Klein, Dan and Gonzalez, Joseph E.}, booktitle={ICML}, year={2020}}",
        arxiv="2002.11794",
    )

    depth: Count | None = None
    head_keep: Share | None = None
    ffn_keep: Share | None = None
    importance: Annotated[
        Importance,
        When(depth=None),  # then heads or neurons are cut
        When(head_keep=In("(0, 1)")),
        When(ffn_keep=In("(0, 1)")),
        When(importance="random"),
    ] = "michel"
    at: Annotated[float, In("(0, 1)", "the large model trains before, the small one after it")] = 0.7
    rounds: Count = 1
    until: Annotated[Inside | None, When(rounds=In("[2, inf)"))] = None
    distill: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.until is not None and self.until <= self.at:
            raise EffptError(f"`compress.until` must be after `compress.at`, {self.at}, not {self.until}.")
        if self.depth is None and self._shares == (1.0, 1.0):
            raise EffptError(
                "`compress` has nothing to cut: `head_keep` and `ffn_keep` are 1 and `depth` is not set; set one of "
                "them lower, or remove `compress`."
            )
        self._config = None

    @property
    def _left(self) -> int:
        """Number of cuts that are still to be made of the model."""
        return max(0, self.rounds - len(events_of(self._config, self.name)))

    @property
    def _shares(self) -> tuple[float, float]:
        """Shares of heads and of neurons to keep."""
        nothing_said = self.depth is None and self.head_keep is None and self.ffn_keep is None
        heads, neurons = (HEADS, NEURONS) if nothing_said else (1.0, 1.0)
        heads = heads if self.head_keep is None else self.head_keep
        return heads, neurons if self.ffn_keep is None else self.ffn_keep

    @property
    def _by_gates(self) -> bool:
        return self.importance == "gates" and self._shares != (1.0, 1.0)

    @property
    def starts_at(self) -> float:
        """Fraction of the clock of the first change: gates learn before the first cut."""
        return max(0.0, self.at - STRETCH) if self._by_gates else self.at

    @property
    def fractions(self) -> list[float]:
        """Fractions of the clock at which the model is cut."""
        return cut_at(self.at, (1.0 + self.at) / 2 if self.until is None else self.until, self.rounds)

    @property
    def settles_at(self) -> float:
        return self.fractions[-1]

    @property
    def measures_loss(self) -> bool:
        return self.importance in ("michel", "random") and self._shares != (1.0, 1.0)

    @property
    def changes_parameters(self) -> bool:
        return self._left > 0 and self._shares != (1.0, 1.0)

    def sizes(self, config: Any, layers: int | None = None) -> tuple[Size, Size]:
        """Sizes of the whole model of this configuration, and after the last cut; `layers` run before the first."""
        whole = Size(layers or config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
        heads, neurons = self._shares
        depth = whole.depth if self.depth is None else self.depth
        return whole, Size(depth, part_of(heads, whole.heads), part_of(neurons, whole.neurons))

    def against_next_tokens(self, until: float) -> str:
        if not self.distill or self.at > until:
            return ""
        return f"has the model of `at` {self.at} of the clock as its teacher, which has learned next tokens only"

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        self._config = config
        settled = start_after(self, None, others)
        if self.starts_at < settled:
            ready = f", and its gates learn from {self.starts_at:g} on" if self._by_gates else ""
            raise EffptError(
                f"`compress.at` is {self.at}{ready}, but another method changes the architecture until {settled} of "
                "the clock; set `compress.at` later, or have the model grow earlier."
            )
        if config is None:
            return
        grows = any(other.order < self.order for other in others.values())
        before = self._left_of(config)
        layers = before[0] if before else config.num_hidden_layers if grows else depth_of(config)
        whole, wanted = self.sizes(config, layers)
        if wanted.depth > whole.depth:
            raise EffptError(
                f"`compress.depth` is {self.depth}, but the model has {whole.depth} layers; set it to at most that."
            )
        if wanted.heads < 1:
            raise EffptError(
                f"`compress.head_keep` is {self.head_keep}, which leaves none of {whole.heads} heads; set it to at "
                f"least {1 / whole.heads:.3g}."
            )
        if wanted.neurons < (unit := unit_of(whole.neurons)):
            raise EffptError(
                f"`compress.ffn_keep` is {self.ffn_keep}, which leaves {wanted.neurons} of {whole.neurons} neurons, "
                f"fewer than a layer can have, {unit}; set it to at least {unit / whole.neurons:.3g}."
            )
        if wanted == whole:
            raise EffptError(
                f"`compress` has nothing to cut of {whole.depth} layers with {whole.heads} heads and {whole.neurons} "
                "neurons; set `depth`, `head_keep` or `ffn_keep` lower, or remove `compress`."
            )
        if not before:  # what an older version has begun goes on
            self._check_cuts(whole, wanted)
        if "layerskip" in others and wanted.depth < 3:
            raise EffptError(
                f"`layerskip` always runs the first and the last layer, and `compress.depth` leaves {wanted.depth}; "
                "leave at least 3, or remove `layerskip`."
            )
        if self.depth is not None and self._left and any("kept" not in cut for cut in events_of(config, self.name)):
            self._check_order(config)
        if config.layer_widths is not None and not events_of(config, self.name) and self._shares != (1.0, 1.0):
            raise EffptError(
                "The model's layers have been cut already (`layer_widths`), and `compress` takes its shares of whole "
                "ones; start from a model of the full width, set only `compress.depth`, or remove `compress`."
            )

    def _check_cuts(self, whole: Size, wanted: Size) -> None:
        """Raises an `EffptError` for a share that is rounded to all."""
        unit, depth = unit_of(whole.neurons), wanted.depth
        neurons = round(wanted.neurons * depth / unit) * unit  # of all layers, as a ticket has them
        for key, share, size, keeps_all, step in (
            ("head_keep", self.head_keep, whole.heads, wanted.heads == whole.heads, 1 / whole.heads),
            ("ffn_keep", self.ffn_keep, whole.neurons, neurons == whole.neurons * depth, unit / whole.neurons / depth),
        ):
            if share not in (None, 1.0) and keeps_all:
                raise EffptError(
                    f"`compress.{key}` is {share}, which keeps all of the {size} in each of {depth} layers; set it to "
                    f"at most {1 - step:.3g}, or leave it out."
                )

    def _check_order(self, config: Any) -> None:
        """Raises an `EffptError` if an older version has cut layers whose order is not that of their indices."""
        if any(event["method"] != self.name for event in config.events):
            raise EffptError(
                "An older version of `compress` has made a first cut of this model, after which it cannot be told "
                "which layer was where before; start from a checkpoint of before the cut, or remove `compress`."
            )

    def prepare(self, backbone: Any, context: RunContext) -> None:
        if self._left < self.rounds:
            said = "an earlier run has cut this model; of %d cuts by `compress` %d are left to make"
            logger.warning(said, self.rounds, self._left)
        dismiss(backbone)  # a teacher from another run does not teach in this one

    def inject(self, backbone: nn.Module) -> None:
        stack_of(backbone)
        if self._by_gates:
            self._put_gates(backbone)
        if self.distill:
            teach_again(backbone)

    def _put_gates(self, backbone: nn.Module) -> None:
        gates = WidthGates(backbone, GATE_RATE)
        gates.attach(backbone)
        if not self._left:  # nothing to learn for; the optimizer's group stays
            gates.retire(backbone)

    def schedule(self, backbone: Any, context: RunContext) -> None:
        if (gates := gates_of(backbone)) is not None:
            gates.on = self._left > 0 and context.fraction >= self.starts_at

    def penalty(self, backbone: Any) -> Tensor | None:
        terms: list[Tensor] = []
        # Beside a generator, this encoder's loss has a weight, which these terms need too.
        main, gates = getattr(backbone.config, "main_weight", 1.0), gates_of(backbone)
        if gates is not None and gates.on:
            terms.append(L1 * main * gate_sum(backbone))
        teacher = teacher_of(backbone)
        if teacher is not None and (term := teacher.take_term()) is not None:
            terms.append(self.distill * main * term)
        return torch.stack(terms).sum() if terms else None

    def advance(self, backbone: Any, context: RunContext) -> bool:
        due, changed = sum(context.fraction >= at for at in self.fractions), False
        # A long step may pass two cuts; then both are made in turn.
        for done in range(self.rounds - self._left, due):
            changed |= self._cut(backbone, done + 1, context)
        if context.fraction >= 1.0:
            dismiss(backbone)
        return changed

    def _cut(self, backbone: Any, number: int, context: RunContext) -> bool:
        """Makes one of the cuts; returns `True` if layers became narrower."""
        facts = teach(backbone) if self.distill and teacher_of(backbone) is None else {}
        stack, config = stack_of(backbone), backbone.config
        layers, left = self._left_of(config) or (len(stack.order), list(range(len(stack.order))))
        whole, wanted = self.sizes(config, layers)
        size, last = (size_after(done, self.rounds, whole, wanted) for done in (number, number - 1))
        lot = step_rng(context.seed, context.step, CUTS)
        shallower = size.depth < len(left)
        if shallower:
            if self.importance == "random":
                fixed = int(first_stays(stack))
                drawn = np.sort(lot.permutation(len(left) - fixed)[: size.depth - fixed])
                stay = left[:fixed] + [left[fixed + place] for place in drawn]
            else:
                stay = thinned(left, layers, wanted.depth, size.depth)
            set_order(backbone, [stack.order[left.index(place)] for place in stay])
            left = stay
        done = "cut to" if size != last else "left at"  # more rounds than parts to go
        what = f"{done} {len(left)} layers of {size.heads} heads and {size.neurons} neurons"
        what += self._chosen(shallower, last, size)
        what += f", {number} of {self.rounds}" if self.rounds > 1 else ""
        ticket = None
        if self._shares != (1.0, 1.0):
            ticket = draw(*self._scores(backbone, context), size.heads, size.neurons * len(left))
            ticket = at_random(ticket, lot) if self.importance == "random" else ticket
        record(config, context.step, self.name, what, facts=facts | {"layers": layers, "kept": left})
        if ticket is not None:
            self._narrow(backbone, ticket, context)
        return ticket is not None

    def _left_of(self, config: Any) -> tuple[int, list[int]] | None:
        """Number of layers that ran before the first cut, and positions in them of those left; `None` before it."""
        if not (cuts := events_of(config, self.name)):
            return None
        if "kept" in cuts[-1]:
            return cuts[-1]["layers"], list(cuts[-1]["kept"])
        # A cut by an older version, which took indices for positions: right unless a growth had permuted the layers.
        layers = config.num_hidden_layers
        return layers, list(range(layers) if config.layer_order is None else config.layer_order)

    def _chosen(self, shallower: bool, before: Size, after: Size) -> str:
        """Words for the choice of the parts of which a cut leaves fewer."""
        parts = [part for part in ("heads", "neurons") if getattr(after, part) < getattr(before, part)]
        said = [f"{' and '.join(parts)} by {self.importance}"] if parts else []
        if shallower:
            said = [f"layers {'at random' if self.importance == 'random' else 'at equal distances'}", *said]
        return f": {', '.join(said)}" if said else ""

    def _narrow(self, backbone: Any, ticket: Ticket, context: RunContext) -> None:
        if (gates := gates_of(backbone)) is not None:
            gates.fold(backbone)
            gates.detach(backbone)
        cuts = cut_width(backbone, ticket)
        if context.is_live:
            cut_state(context.optimizer, cuts)
        if gates is not None:
            self._put_gates(backbone)

    def _scores(self, backbone: Any, context: RunContext) -> Scores:
        if self.importance == "magnitude":
            return magnitude(backbone)
        if gates_of(backbone) is not None:
            return gate_scores(backbone)
        if not context.is_live:
            raise EffptError(
                f"`compress.importance` `{self.importance}` measures heads and neurons on text; use a Trainer, or "
                "`magnitude`."
            )
        return loss_importance(backbone, context)

    def cost_signature(self, backbone: Any) -> str:
        gates = gates_of(backbone)
        said = ["gates"] if gates is not None and gates.on else []
        if (teacher := teacher_of(backbone)) is not None:
            said.append(f"distilled by {teacher.widths}")
        return " ".join(["compress", *said]) if said else ""

    def eject(self, backbone: Any) -> None:
        dismiss(backbone)
        if (gates := gates_of(backbone)) is not None:
            if self._left:
                gates.fold(backbone)
            gates.detach(backbone)
        super().eject(backbone)
