"""What a run with selection keeps in its model: the strategy, and the counts that tell what it does to the data.

N rows looked at, L row length, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.precision import KeepsPrecision
from hf_effpt.core.processes import add_up, gather, world
from hf_effpt.core.token_losses import TokenLosses, observe_losses

from .memory import Memory
from .strategy import Pool, Strategy
from .table import IrreducibleLosses

logger = logging.getLogger(__name__)

RARER, SHORTER = 0.5, 0.1  # nats of log frequency, and share of the length, from which a drift is worth an alarm


def changed_at(backbone: Any) -> int:
    """The step of this run after which another method changed the architecture last, or 0."""
    return max((event["step"] for event in backbone.config.events or [] if not event.get("past")), default=0)


class Selector(KeepsPrecision):
    """The strategy at work in a backbone, whose submodule `selector` it is; nothing of it is a parameter.

    `counts` holds how many rows have been looked at, scored, and trained on; `frequencies`, how often each token has
    been seen. Both are over all processes.

    Args:
        strategy ([`Strategy`]): how rows are judged.
        memory ([`Memory`], *optional*): of the losses that rows had, if they are judged by those.
        vocab_size (`int`): of the model.
    """

    in_snapshot = False  # what it has learned of the rows holds whatever the weights are
    counts: Tensor
    frequencies: Tensor
    unknown: Tensor

    def __init__(self, strategy: Strategy, memory: Memory | None, vocab_size: int) -> None:
        super().__init__()
        self.strategy, self.memory = strategy, memory
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("frequencies", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("unknown", torch.full((), -1, dtype=torch.int64))  # the id of the unknown token
        self.table: IrreducibleLosses | None = None  # on disk, of `rho`
        self.dataset_id: str | None = None
        self.pending: Pool | None = None  # the rows of the step under way
        self._told: list[TokenLosses] = []
        self._warned: set[str] = set()

    @property
    def observes(self) -> bool:
        """Whether the strategy needs the losses of what is trained on."""
        kind = type(self.strategy)
        hooks = ("learn", "on_token_losses", "loss_weights")
        asks = any(getattr(kind, name) is not getattr(Strategy, name) for name in hooks)
        return asks or self.memory is not None

    def attach(self, backbone: Any, observes: bool) -> None:
        """Makes this the submodule `selector` of `backbone`; if `observes`, its strategy sees training losses."""
        backbone.selector = self
        if observes and self.observes:
            observe_losses(backbone, "selection", self.take)

    def detach(self, backbone: Any) -> None:
        """Takes the selector out of `backbone`."""
        observe_losses(backbone, "selection", None)
        del backbone.selector

    def reset_missing_parameters(self) -> None:
        """Begins anew where the weights that a model is loaded from have none of its buffers."""
        if not getattr(self.counts, "_is_hf_initialized", False):
            self.begin(0)

    def begin(self, seed: int) -> None:
        """Puts all buffers to what they are before a run."""
        self.counts.zero_()
        self.frequencies.zero_()
        self.unknown.fill_(-1)
        if self.memory is not None:
            self.memory.begin()
        self.strategy.draw(seed)

    # What is learned from.

    def expect(self, pool: Pool) -> None:
        """Says which rows the training forwards to come are of, micro-batch after micro-batch."""
        self.pending, self._told = pool, []

    def take(self, losses: TokenLosses) -> Tensor | None:
        """Takes the losses of a micro-batch, and returns what they are to be weighted by, if anything."""
        have = sum(told.rows for told in self._told)
        if self.pending is None or have >= len(self.pending):
            return None
        self._told.append(losses)
        return self.strategy.loss_weights(losses, self.pending)

    @torch.no_grad()
    def settle(self, backbone: Any) -> None:
        """Has the strategy learn from what all processes have trained on in the step."""
        pool, told = self.pending, self._told
        self.pending, self._told = None, []
        if pool is None or not told or sum(of.rows for of in told) != len(pool):
            return
        sums = [of.by_row() for of in told]
        losses_N = torch.cat([sums_B / counts_B.clamp(min=1) for sums_B, counts_B in sums]).float()
        self.strategy.on_token_losses(pool, told)
        keys_N, ids_N = gather(pool.keys_N), gather(pool.ids_N)
        seen = None if pool.seen is None else gather(pool.seen)
        every = Pool(keys_N, ids_N, seen, pool.step, pool.fraction, pool.seed)
        # By their numbers: it shall not matter in which order rows came, or to which process.
        order_N = ids_N.argsort(stable=True)
        every, every_N = every.of(order_N), gather(losses_N)[order_N]
        if seen is not None or self.strategy.input_kind != "vectors":
            self.strategy.learn(every, every_N)
        if self.memory is not None:
            self.memory.learn(every, every_N, changed_at(backbone))
        accumulator_of(backbone).add(**self.strategy.sums())

    # What it does to the data.

    @torch.no_grad()
    def measure(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Counts the tokens of rows; the length, mean log frequency, and share of unknown tokens of each, fp32 `(N,)`.

        Frequencies are those of what all steps before have looked at.
        """
        labels_NL = rows["labels"]
        ids_NL = torch.where(labels_NL != -100, labels_NL, rows["input_ids"])
        real_NL = torch.ones_like(ids_NL, dtype=torch.bool)
        if "document_ids" in rows:
            real_NL = rows["document_ids"] > 0
        elif "attention_mask" in rows:
            real_NL = rows["attention_mask"] > 0
        length_N = real_NL.sum(dim=1).clamp(min=1)
        shares_V = (self.frequencies + 1.0) / (self.frequencies.sum() + len(self.frequencies))
        frequency_N = (shares_V.log()[ids_NL] * real_NL).sum(dim=1) / length_N
        unknown_N = ((ids_NL == self.unknown) & real_NL).sum(dim=1) / length_N
        seen_V = torch.zeros_like(self.frequencies).index_add_(0, ids_NL.flatten(), real_NL.flatten().long())
        self.frequencies += add_up(seen_V)
        return length_N.float(), frequency_N.float(), unknown_N.float()

    def count(self, backbone: Any, seen: int, scored: int, trained: int) -> None:
        """Adds to the counters, in rows of this process."""
        for place, number in enumerate((seen, scored, trained)):
            self.counts[place] += number * world()
        accumulator_of(backbone).add(selection_seen=seen, selection_scored=scored, selection_trained=trained)

    def compare(
        self, backbone: Any, picked: Tensor, scores_N: Tensor | None, measures: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Adds to the tally how the rows that were `picked` differ from the others."""
        length_N, frequency_N, _ = measures
        kept_N = torch.zeros_like(length_N, dtype=torch.float64).scatter_(0, picked, 1.0)
        left_N = 1.0 - kept_N
        sums: dict[str, Tensor | float] = {"selection_picks": 1.0}
        for name, values_N in (("length", length_N), ("frequency", frequency_N), ("score", scores_N)):
            if values_N is not None:
                values_N = values_N.double()
                sums[f"selection_{name}_kept"] = (values_N * kept_N).sum() / kept_N.sum()
                sums[f"selection_{name}_left"] = (values_N * left_N).sum() / left_N.sum()
                if name == "score":
                    for place in (0.1, 0.5, 0.9):
                        for of, mask_N in (("kept", kept_N), ("left", left_N)):
                            named = torch.where(mask_N > 0, values_N, torch.nan)
                            sums[f"selection_score_{of}_{place:.0%}"] = torch.nanquantile(named, place)
        accumulator_of(backbone).add(**sums)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What a log entry says; a drift of what is learned from is warned of, once."""
        names = ("selection_seen", "selection_scored", "selection_trained")
        found = {name: sums[name] for name in names if name in sums} | self.strategy.metrics(sums)
        if warning := self.strategy.warning(found):
            self._warn(warning)
        picks = sums.get("selection_picks")
        if not picks:
            return found
        found |= {name: value / picks for name, value in sums.items() if name.startswith("selection_score_")}
        shift = {
            of: (sums[f"selection_{of}_kept"] - sums[f"selection_{of}_left"]) / picks for of in ("length", "frequency")
        }
        found |= {f"selection_{of}_shift": value for of, value in shift.items()}
        if abs(shift["frequency"]) > RARER:
            rarer = "rarer" if shift["frequency"] < 0 else "more frequent"
            self._warn(
                f"`selection` keeps rows of {rarer} tokens: their mean log frequency differs by "
                f"{shift['frequency']:+.2f} nats from the others'. It may be learning noise; look at `outliers` or "
                "`explore`."
            )
        usual = sums["selection_length_left"] / picks
        if abs(shift["length"]) > SHORTER * usual:
            self._warn(
                f"`selection` keeps {'longer' if shift['length'] > 0 else 'shorter'} rows than it leaves, by "
                f"{abs(shift['length']):.1f} of {usual:.1f} tokens."
            )
        return found

    def _warn(self, text: str) -> None:
        kind = text[:40]
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(text)
