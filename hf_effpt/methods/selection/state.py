"""State of a selection, kept in the model: the strategy, and counters that describe the selected data.

N rows of a pool, L row length, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.padding import real_tokens
from hf_effpt.core.precision import KeepsPrecision
from hf_effpt.core.processes import add_up, gather, world
from hf_effpt.core.token_losses import TokenLosses, observe_losses

from .memory import Memory
from .strategy import Pool, Strategy
from .table import IrreducibleLosses

logger = logging.getLogger(__name__)

RARER, SHORTER = 0.5, 0.1  # drift of log frequency, in nats, and of relative length to warn of


def changed_at(backbone: Any) -> int:
    """Step of this run after which another method last changed the architecture, or 0."""
    return max((event["step"] for event in backbone.config.events or [] if not event.get("past")), default=0)


class Selector(KeepsPrecision):
    """Submodule `selector` of a backbone, without parameters: the strategy and its counters.

    Counters cover all processes. There is a `memory` if the last losses of rows are the scores.
    """

    in_snapshot = False  # knowledge of the rows stays valid when weights are rewound
    counts: Tensor  # rows seen, scored, and trained on
    frequencies: Tensor  # occurrences of each token
    unknown: Tensor  # id of the unknown token

    def __init__(self, strategy: Strategy, memory: Memory | None, vocab_size: int) -> None:
        super().__init__()
        self.strategy, self.memory = strategy, memory
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("frequencies", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("unknown", torch.full((), -1, dtype=torch.int64))
        self.table: IrreducibleLosses | None = None  # of `rho`, on disk
        self.dataset_id: str | None = None
        self.pending: Pool | None = None  # rows of the current step
        self._told: list[TokenLosses] = []
        self._warned: set[str] = set()

    @property
    def observes(self) -> bool:
        """`True` if the strategy needs training losses."""
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
        """Removes the selector from `backbone`."""
        observe_losses(backbone, "selection", None)
        del backbone.selector

    def resize_vocabulary(self, size: int) -> None:
        """Counts further tokens of a longer vocabulary from 0."""
        self.frequencies = nn.functional.pad(self.frequencies, (0, size - len(self.frequencies)))

    def reset_missing_parameters(self) -> None:
        """Resets buffers that the loaded weights lack."""
        if not getattr(self.counts, "_is_hf_initialized", False):
            self.begin(0)

    def begin(self, seed: int) -> None:
        """Resets all buffers to their values before a run."""
        self.counts.zero_()
        self.frequencies.zero_()
        self.unknown.fill_(-1)
        if self.memory is not None:
            self.memory.begin()
        self.strategy.draw(seed)

    def expect(self, pool: Pool) -> None:
        """Sets the rows of the coming training forward passes, in the order of the micro-batches."""
        self.pending, self._told = pool, []

    def take(self, losses: TokenLosses) -> Tensor | None:
        """Stores the losses of a micro-batch; returns factors for them, or `None`."""
        have = sum(told.rows for told in self._told)
        if self.pending is None or have >= len(self.pending):
            return None
        self._told.append(losses)
        return self.strategy.loss_weights(losses, self.pending)

    @torch.no_grad()
    def settle(self, backbone: Any) -> None:
        """Lets the strategy learn from the rows that all processes trained on in the step."""
        pool, told = self.pending, self._told
        self.pending, self._told = None, []
        if pool is None or not told or sum(of.rows for of in told) != len(pool):
            return
        sums = [of.by_row() for of in told]
        losses_N = torch.cat([sums_B / counts_B.clamp(min=1) for sums_B, counts_B in sums]).float()
        self.strategy.on_token_losses(pool, told)
        seen = None if pool.seen is None else gather(pool.seen)
        every = replace(pool, keys_N=gather(pool.keys_N), ids_N=gather(pool.ids_N), seen=seen)
        # Sorted, so that the order of rows and their processes do not matter.
        order_N = every.ids_N.argsort(stable=True)
        every, every_N = every.of(order_N), gather(losses_N)[order_N]
        if seen is not None or self.strategy.input_kind != "vectors":
            self.strategy.learn(every, every_N)
        if self.memory is not None:
            self.memory.learn(every, every_N, changed_at(backbone))
        accumulator_of(backbone).add(**self.strategy.sums())

    @torch.no_grad()
    def measure(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Counts tokens; returns length, mean log frequency and share of unknown tokens of each row, fp32 `(N,)`.

        Frequencies are those of the rows seen in all steps before.
        """
        labels_NL = rows["labels"]
        ids_NL = torch.where(labels_NL != -100, labels_NL, rows["input_ids"])
        real_NL = real_tokens(ids_NL, rows.get("attention_mask"), rows.get("document_ids"))
        length_N = real_NL.sum(dim=1).clamp(min=1)
        shares_V = (self.frequencies + 1.0) / (self.frequencies.sum() + len(self.frequencies))
        frequency_N = (shares_V.log()[ids_NL] * real_NL).sum(dim=1) / length_N
        unknown_N = ((ids_NL == self.unknown) & real_NL).sum(dim=1) / length_N
        seen_V = torch.zeros_like(self.frequencies).index_add_(0, ids_NL.flatten(), real_NL.flatten().long())
        self.frequencies += add_up(seen_V)
        return length_N.float(), frequency_N.float(), unknown_N.float()

    def count(self, backbone: Any, seen: int, scored: int, trained: int) -> None:
        """Adds the numbers of rows of this process to the counters."""
        for place, number in enumerate((seen, scored, trained)):
            self.counts[place] += number * world()
        accumulator_of(backbone).add(selection_seen=seen, selection_scored=scored, selection_trained=trained)

    def compare(
        self, backbone: Any, picked: Tensor, scores_N: Tensor | None, measures: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Adds differences between the `picked` rows and the others to the metrics."""
        length_N, frequency_N, _ = measures
        kept_N = torch.zeros_like(length_N, dtype=torch.float64).scatter_(0, picked, 1.0)
        left_N = 1.0 - kept_N
        sums: dict[str, Tensor | float] = {"selection_picks": 1.0}
        for of, mask_N in (("kept", kept_N), ("left", left_N)):
            for name, values_N in (("length", length_N), ("frequency", frequency_N), ("score", scores_N)):
                if values_N is not None:
                    sums[f"selection_{name}_{of}"] = (values_N.double() * mask_N).sum() / mask_N.sum()
            if scores_N is not None:
                named_N = torch.where(mask_N > 0, scores_N.double(), torch.nan)
                for place in (0.1, 0.5, 0.9):
                    sums[f"selection_score_{of}_{place:.0%}"] = torch.nanquantile(named_N, place)
        accumulator_of(backbone).add(**sums)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics for a log entry; warns once of a drift of the selected data."""
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
