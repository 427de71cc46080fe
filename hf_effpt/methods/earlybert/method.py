"""EarlyBERT: gates find the heads and neurons worth training early in a run; the rest is cut (Chen et al., 2021)."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from hf_effpt.core.anatomy import generator_of
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import depth_of, order_of, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import WidthGates, gate_scores, gate_sum, gates_of, loss_importance, magnitude
from hf_effpt.core.ledger import events_of, record
from hf_effpt.core.method import Method, Paper, start_after
from hf_effpt.core.settings import Count, Fraction, In, NotNegative, Positive, Share, When, check_settings
from hf_effpt.core.shares import first_step
from hf_effpt.core.snapshot import snapshot_of
from hf_effpt.core.ticket import FILE, Ticket
from hf_effpt.core.width import cut_state, cut_width

from .drawing import any_like, best, check_cuts, check_shares, worst
from .search import NAME, Search

logger = logging.getLogger(__name__)

BY_GATES = ("earlybert", "random", "bad")  # tickets with the widths that a search by gates finds
BY_SCORES = ("magnitude", "michel")
GATED, DRAWN = When(ticket=BY_GATES), When(ticket=(*BY_GATES, *BY_SCORES))
ORIGIN = "drawn_by"  # key in the event of a saved ticket: the record of the run that drew it


@dataclass
class EarlyBert(Method):
    """Searches early in the run for a ticket, a narrower network, and trains only that (Chen et al., 2021).

    In the search every attention head and feed-forward neuron has a gate, which is trained with the weights under an
    L1 penalty. At intervals the heads and neurons with the largest gates are recorded as a mask. When recent masks
    agree, or the search has lasted long enough, the others are cut away. What is left is a model with smaller layers,
    which continues from the weights it had before the search.

    Args:
        head_keep (`float`, *optional*, defaults to 2/3): share, in (0, 1], of the heads of each layer to keep.
        ffn_keep (`float`, *optional*, defaults to 0.6): share, in (0, 1], of the feed-forward neurons of all layers
            together to keep; the number in a layer is rounded to a multiple of 64 (of 8 below 512 neurons).
        max_search_steps (`float`, *optional*, defaults to 0.05): longest search: below 1 a share of the clock, from 1
            on a number of optimizer steps.
        epsilon (`float`, *optional*, defaults to 0.1): largest share of heads, and of neurons, in [0, 1], in which the
            newest mask may differ from each of the others for the search to end.
        window (`int`, *optional*, defaults to 5): number of masks, at least 2, that are compared.
        every (`int`, *optional*, defaults to 10): optimizer steps from one mask to the next.
        weights (`str`, *optional*, defaults to `"rewind"`): `"rewind"` gives the ticket the weights from before the
            search and starts optimizer and learning rate again; `"keep"` leaves its weights, optimizer state and the
            schedule of the whole run (You et al., 2020).
        l1 (`float`, *optional*, defaults to 1e-4): weight, at least 0, of the sum of the absolute gates in the loss.
            It is multiplied by the weight of the main loss, such as ELECTRA's 50.
        gate_learning_rate (`float`, *optional*, defaults to 0.01): peak learning rate of the gates, above 0. With that
            of the weights, as published, they hardly move.
        ticket (`str`, *optional*, defaults to `"earlybert"`): parts to keep: `"earlybert"`, those of the largest
            gates; `"magnitude"`, of the largest weights after a search without gates; `"michel"`, those on which the
            loss then depends most (Michel et al., 2019); as controls of the same widths `"random"`, and `"bad"`, those
            of the smallest gates (Prasanna et al., 2020); or the path of a saved ticket, which is cut before the run
            begins.
        after (`float`, *optional*): fraction of the clock, in [0, 1), at which the search begins. By default the
            start, or the time from which the depth no longer changes.

    Raises:
        EffptError: if a value is outside its range or has no effect with this `ticket`, a layer would keep no heads or
            neurons, the search would last to the end, the ticket is missing or of another shape, or the model is
            narrow already.
    """

    name: ClassVar[str] = "earlybert"
    order: ClassVar[int] = 2
    summary: ClassVar[str] = "Finds early which heads and neurons to keep, cuts the others away and trains the rest."
    example: ClassVar[Mapping[str, Any]] = {"max_search_steps": 0.15, "every": 1, "window": 2}
    conflicts: ClassVar[frozenset[str]] = frozenset({"lottery", "compress"})
    paper: ClassVar[Paper] = Paper.of(
        "@inproceedings{chen2021earlybert, title={{EarlyBERT}: Efficient {BERT} Training via Early-bird Lottery "
        "Tickets}, author={Chen, Xiaohan and Cheng, Yu and Wang, Shuohang and Gan, Zhe and Wang, Zhangyang and "
        "Liu, Jingjing}, booktitle={ACL}, year={2021}}",
        arxiv="2101.00063",
    )

    head_keep: Annotated[Share, DRAWN] = 2 / 3
    ffn_keep: Annotated[Share, DRAWN] = 0.6
    max_search_steps: Annotated[Positive, DRAWN] = 0.05
    epsilon: Annotated[float, In("[0, 1]"), GATED] = 0.1
    window: Annotated[int, In("[2, inf)"), GATED] = 5
    every: Annotated[Count, GATED] = 10
    weights: Annotated[Literal["rewind", "keep"], DRAWN] = "rewind"
    l1: Annotated[NotNegative, GATED] = 1e-4
    gate_learning_rate: Annotated[Positive, GATED] = 0.01
    ticket: str = "earlybert"
    after: Annotated[Fraction | None, DRAWN] = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.max_search_steps >= 1 and self.max_search_steps != int(self.max_search_steps):
            raise EffptError(
                "`earlybert.max_search_steps` must be a share of the clock below 1 or a whole number of steps, not "
                f"{self.max_search_steps}."
            )
        self.ticket = str(self.ticket)
        if self.head_keep == self.ffn_keep == 1.0:
            raise EffptError(
                "`earlybert` has nothing to search: `head_keep` and `ffn_keep` are 1; lower one of them, or remove "
                "`earlybert`."
            )
        self._start, self._config = self.after or 0.0, None

    @property
    def departures(self) -> str:
        if self.ticket != "earlybert":
            return ""
        return (
            "gates have a learning rate of their own and are ranked by |c| to an exact number; a search may end early "
            "by the test of You et al.; the number of neurons of a layer is rounded to a multiple of 64 or 8. The "
            "authors' code of pre-training was not released."
        )

    @property
    def _is_saved(self) -> bool:
        """`True` if the ticket is read from a file, without a search."""
        return self.ticket not in (*BY_GATES, *BY_SCORES)

    @property
    def _is_drawn(self) -> bool:
        """`True` once the ticket is drawn and cut, in this run or an earlier one of the model."""
        return bool(events_of(self._config, self.name))

    @property
    def changes_parameters(self) -> bool:
        return not self._is_saved and not self._is_drawn

    @property
    def measures_loss(self) -> bool:
        return self.ticket == "michel"

    @property
    def needs_snapshot(self) -> bool:
        return self.changes_parameters and self.weights == "rewind"

    def least_steps(self, budget: int) -> int:
        if not self.changes_parameters or self.max_search_steps < 1:
            return 0
        return first_step(self._start, budget) + int(self.max_search_steps)

    @property
    def settles_at(self) -> float:
        if self._is_saved:
            return 0.0
        return self._start + self.max_search_steps if self.max_search_steps < 1 else math.inf

    def bind(self, config: Any, others: Mapping[str, Method]) -> None:
        self._config = config
        self._start = start_after(self, self.after, others)
        if self._is_saved:
            if "stacking" in others:
                raise EffptError(
                    f"`earlybert.ticket` is a saved one, {self.ticket!r}, which is cut before the run begins, and "
                    "`stacking` would copy its layers; search for a ticket after the last growth (leave `ticket` "
                    "out), or remove `stacking`."
                )
        elif 1.0 <= self.settles_at < math.inf:
            raise EffptError(
                f"`earlybert` would search from {self._start:.3g} of the clock for {self.max_search_steps:.3g} of it, "
                "to the end of the run; lower `earlybert.max_search_steps`, or have it begin earlier."
            )
        if not self._is_drawn:  # a drawn ticket was checked, and its file may be gone
            self._check_ticket(config)

    def _check_ticket(self, config: Any) -> None:
        """Checks that the ticket exists and suits the model."""
        saved = None
        if self._is_saved:
            if not Path(self.ticket).is_file():
                raise EffptError(
                    f"`earlybert.ticket` must be {', '.join((*BY_GATES, *BY_SCORES))} or the path of a ticket that "
                    f"`Ticket.save` has written, and there is no file {self.ticket!r}."
                )
            saved = Ticket.load(self.ticket)
        if config is None:
            return
        if config.layer_widths is not None:
            raise EffptError(
                "The model's layers have been cut already (`layer_widths`), and a ticket is drawn from whole ones; "
                "start from a model of the full width, or train this one without `earlybert`."
            )
        shape = [config.num_attention_heads, config.intermediate_size]
        if saved is not None:
            saved.check([shape] * depth_of(config))
        else:
            check_shares(self.head_keep, self.ffn_keep, *shape)
            check_cuts(self.head_keep, self.ffn_keep, config.num_hidden_layers, *shape)

    def inject(self, backbone: Any) -> None:
        config = backbone.config
        shape = (config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
        setattr(backbone, NAME, Search(self.window, *shape, begun=self._start <= 0).to(backbone.device))
        stack_of(backbone)
        if self.ticket in BY_GATES:
            gates = WidthGates(backbone, self.gate_learning_rate)
            if self._is_drawn:
                gates.retire(backbone)
            else:
                gates.attach(backbone)
                gates.on = True  # outside a run, learned gates have an effect

    def prepare(self, backbone: Any, context: RunContext) -> None:
        """Cuts a saved ticket before the optimizer is made; folds gates of an unfinished search into the weights."""
        if self._is_drawn:
            return
        getattr(backbone, NAME).forget()
        if (gates := gates_of(backbone)) is not None:
            gates.fold(backbone)
        if self._is_saved:
            ticket = Ticket.load(self.ticket)
            getattr(backbone, NAME).keep(ticket, order_of(backbone))
            cut_width(backbone, ticket)
            what = f"cut the ticket of {self.ticket}: {_kept(ticket)}"
            record(backbone.config, 0, self.name, what, facts={ORIGIN: ticket.drawn_by})

    def schedule(self, backbone: Any, context: RunContext) -> None:
        gates = gates_of(backbone)
        if gates is not None and not self._is_drawn:
            gates.on = getattr(backbone, NAME).since is not None

    def penalty(self, backbone: Any) -> Tensor | None:
        """L1 norm of the gates of the layers that run, summed and scaled like the main loss."""
        gates = gates_of(backbone)
        if gates is None or not gates.on or not self.l1:
            return None
        weight = self.l1
        if generator_of(backbone) is not None:  # the main loss has this weight beside a generator's
            weight *= backbone.config.main_weight
        return weight * gate_sum(backbone)

    def cost_signature(self, backbone: Any) -> str:
        gates = gates_of(backbone)
        return "earlybert gates" if gates is not None and gates.on else ""

    def eject(self, backbone: Any) -> None:
        gates = gates_of(backbone)
        if gates is not None:
            if not self._is_drawn:
                gates.fold(backbone)
            gates.detach(backbone)
        delattr(backbone, NAME)
        super().eject(backbone)

    def save_artifacts(self, backbone: Any, folder: Path) -> None:
        """Writes the ticket beside the exported model."""
        if (ticket := self.ticket_of(backbone)) is not None:
            ticket.save(folder / FILE)

    def advance(self, backbone: Any, context: RunContext) -> bool:
        step, fraction = context.step, context.fraction
        if not context.is_live or not self.changes_parameters or fraction < self._start:
            return False
        search: Search = getattr(backbone, NAME)
        if fraction >= 1.0:
            logger.warning("the run has ended before a ticket was drawn: nothing is cut. Allow a shorter search.")
            return False
        if search.since is None:
            search.begin(step)
            if self.needs_snapshot:  # the weights to rewind to, at the full depth
                snapshot_of(context.model).take(context.model)
            return False
        searched = step - search.since
        distances = None
        if self.ticket in BY_GATES and searched > 0 and searched % self.every == 0:
            search.note(best(gate_scores(backbone), self.head_keep, self.ffn_keep), order_of(backbone))
            distances = search.distances(order_of(backbone))
        converged = distances is not None and max(distances) <= self.epsilon
        share = self.max_search_steps < 1
        is_over = fraction >= self.settles_at if share else searched >= self.max_search_steps
        if not converged and not is_over:
            return False
        ticket = self._draw(backbone, context)
        found = f"by {self.ticket} after {searched} steps of search"
        if self.ticket in BY_GATES:
            distances = distances or search.distances(order_of(backbone))
            said = "masks differ in {:.3f} of heads and {:.3f} of neurons" if distances else "too few masks to compare"
            found += f" ({said.format(*distances or ())})"
        self._cut(backbone, ticket, context)
        search.keep(ticket, order_of(backbone))
        span = (fraction, 1.0) if self.weights == "rewind" else None
        what = f"drew a ticket {found}: {_kept(ticket)}; weights {'rewound' if span else 'kept'}"
        record(backbone.config, step, self.name, what, span=span)
        return True

    def _draw(self, backbone: Any, context: RunContext) -> Ticket:
        if self.ticket == "magnitude":
            scores = magnitude(backbone)
        elif self.ticket == "michel":
            scores = loss_importance(backbone, context)
        else:
            scores = gate_scores(backbone)
        good = best(scores, self.head_keep, self.ffn_keep)
        if self.ticket == "random":
            return any_like(good, context.seed, context.step)
        return worst(scores, good) if self.ticket == "bad" else good

    def _cut(self, backbone: Any, ticket: Ticket, context: RunContext) -> None:
        """Cuts model and optimizer to the ticket, rewound or not."""
        gates = gates_of(backbone)
        if self.weights == "rewind":
            snapshot_of(context.model).put_back(context.model)
            context.optimizer.state.clear()
        elif gates is not None:
            gates.fold(backbone)
        if gates is not None:
            gates.retire(backbone)
        cut_state(context.optimizer, cut_width(backbone, ticket))

    def ticket_of(self, backbone: Any) -> Ticket | None:
        """Ticket that `backbone` was cut to; `None` before it is drawn."""
        if not self._is_drawn:
            return None
        event = events_of(backbone.config, self.name)[0]
        if self._is_saved:  # this run has not drawn it
            drawn_by = {**(event.get(ORIGIN) or {}), "read_from": self.ticket}
        else:
            kept = {"ticket": self.ticket, "head_keep": self.head_keep, "ffn_keep": self.ffn_keep}
            drawn_by = kept | {"step": event["step"], "what": event["what"]}
        return getattr(backbone, NAME).ticket(order_of(backbone), drawn_by)


def _kept(ticket: Ticket) -> str:
    """Widths of the layers of a ticket, in a few words."""
    said = []
    for kind, name in enumerate(("heads", "neurons")):
        kept, whole = [layer[kind] for layer in ticket.widths], sum(layer[kind] for layer in ticket.shape)
        said.append(f"{sum(kept)} of {whole} {name} ({min(kept)} to {max(kept)} a layer)")
    return ", ".join(said)
