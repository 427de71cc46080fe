"""Base class of selection strategies.

N rows of a pool, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.precision import KeepsPrecision
from hf_effpt.core.token_losses import TokenLosses

from .picking import choose
from .pool import Pool

InputKind = Literal["logits", "vectors", "losses", "nothing"]
Scorer = Literal["full", "first_layer", "embedding", "stale", "generator"]
Mode = Literal["topk", "rank_sample", "weighted"]
Level = Literal["head", "full"]

OF_STALE = ("table", "max_age")  # settings of the scorer `stale`
BY_SCORE = ("explore", "outliers")  # settings of strategies that pick by score


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings of a [`Selection`], described there, with every default filled in."""

    keep: float = 0.5
    scorer: Scorer | None = None
    rule: str | None = None
    mode: Mode = "topk"
    start: float = 0.5
    end: float = 0.9
    interrupt: int = 2
    explore: float = 0.1
    outliers: float = 0.0
    warmup: int = 0
    passes: int = 5
    dropout: float = 0.1
    level: Level = "head"
    members: int = 5
    queue: int = 0
    max_age: int | None = None
    num_score_positions: int | None = None
    rows: int = 0


class Strategy(KeepsPrecision):
    """Scores rows, picks some, and may learn from those trained on; its buffers are equal in all processes."""

    input_kind: ClassVar[InputKind]
    # Valid values, the default first; a strategy with its own `pick` has a single mode.
    scorers: tuple[Scorer, ...] = ()
    rules: ClassVar[tuple[str, ...]] = ()
    modes: ClassVar[tuple[Mode, ...]] = ("topk", "rank_sample", "weighted")
    settings: ClassVar[tuple[str, ...]] = BY_SCORE  # beyond those of all strategies
    defaults: ClassVar[Mapping[str, Any]] = {}  # where they differ from those of [`ResolvedSettings`]
    picks_rows: ClassVar[bool] = True  # `False` if it learns from all rows, but not equally
    compares: ClassVar[Literal["rows", "tokens"] | None] = None  # losses of a reference model that it needs
    mlm_only: ClassVar[bool] = False  # `True` if it needs the losses of masked tokens
    departures: ClassVar[str] = ""  # differences from its publication, where a model card tells them
    remembers: ClassVar[bool] = False  # `True` if it compares a step with rows or losses of steps before
    on = False  # `True` in an optimizer step in which it acts
    salts: tuple[int, ...] = (0,)  # salts of random numbers in `rate`; set before a pool is rated

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        super().__init__()
        self.resolved = resolved
        self.rule = resolved.rule or next(iter(self.rules), "")

    @classmethod
    def settings_with(cls, scorer: Scorer | None, rule: str | None) -> set[str]:
        """Names of its settings with this scorer and rule, beyond those of all strategies."""
        return {*cls.settings, *(OF_STALE if scorer == "stale" else ())}

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Initialises its buffers in place, without a global generator; here to zero."""
        for buffer in self.buffers():
            buffer.zero_()

    def rate(self, reading: HeadInputs) -> Tensor:
        """Scores a batch by the model's logits, of shape `(batch_size,)`; for `input_kind` `logits`."""
        raise NotImplementedError

    def scores(self, pool: Pool) -> Tensor:
        """Scores of the pool, of shape `(rows,)`; rows of high scores are preferred."""
        return pool.seen

    def pick(self, pool: Pool, number: int) -> Tensor:
        """Positions in the pool, in rising order, of the `number` rows to learn from."""
        return choose(self.scores(pool), pool, number, self.resolved)

    def loss_weight_inputs(self, pool: Pool, kept_N: Tensor) -> Tensor | None:
        """Inputs of `loss_weights` for the picked rows, of shape `(picked,)` or `(picked, ...)`."""
        return None

    def loss_weights(self, losses: TokenLosses, pool: Pool) -> Tensor | None:
        """Factors for a micro-batch's losses, of shape `(tokens,)`, or `None`; `pool` is that of the whole step."""
        return None

    def on_token_losses(self, pool: Pool, told: Sequence[TokenLosses]) -> None:
        """Learns from the per-token losses of the rows that this process trained on in a step."""

    def learn(self, pool: Pool, losses_N: Tensor) -> None:
        """Learns from the rows that all processes trained on in a step, and their mean losses."""

    def sums(self) -> dict[str, Tensor]:
        """Amounts to add to the metric accumulator after a step in which it has learned."""
        return {}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics for a log entry, from the accumulated sums."""
        return {}

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """Text of a warning that these metrics call for; `None` if all is well."""
        return None
