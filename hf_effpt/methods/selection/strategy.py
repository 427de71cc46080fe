"""What a strategy is: how it judges rows, which it picks, and what it learns from those that were trained on.

N rows looked at, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.precision import KeepsPrecision
from hf_effpt.core.token_losses import TokenLosses

from .picking import choose

InputKind = Literal["logits", "vectors", "losses", "nothing"]
Scorer = Literal["full", "first_layer", "embedding", "stale", "generator"]
Mode = Literal["topk", "rank_sample", "weighted"]
Level = Literal["head", "full"]


@dataclass(frozen=True)
class Pool:
    """The rows that one process looks at in an optimizer step, or those of them that were trained on.

    Args:
        keys_N (`Tensor` of shape `(rows,)`): int64, one for each example and epoch; all that chance depends on
            besides seed and step.
        ids_N (`Tensor` of shape `(rows,)`): int64 numbers of the examples in the dataset.
        seen (`Tensor` of shape `(rows,)` or `(rows, size)`, *optional*): what the scorer has made of them: scores of a
            strategy that sees logits or losses, vectors of one that sees those.
        step (`int`), fraction (`float`), seed (`int`): of the run.
    """

    keys_N: Tensor
    ids_N: Tensor
    seen: Tensor | None
    step: int
    fraction: float
    seed: int

    def __len__(self) -> int:
        return len(self.keys_N)

    def seeing(self, seen: Tensor) -> Pool:
        """The same rows, with what a scorer has made of them."""
        return replace(self, seen=seen)

    def of(self, rows: Tensor) -> Pool:
        """Some of the rows, by their numbers in this pool."""
        seen = None if self.seen is None else self.seen[rows]
        return replace(self, keys_N=self.keys_N[rows], ids_N=self.ids_N[rows], seen=seen)


@dataclass(frozen=True)
class ResolvedSettings:
    """The settings of a [`Selection`] with nothing left open; what each means is said there."""

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
    """How rows are judged and picked; what it learns is in buffers, which are the same in all processes.

    Args:
        resolved ([`ResolvedSettings`]): the settings.
        config: of the model.
    """

    input_kind: ClassVar[InputKind]
    scorers: tuple[Scorer, ...] = ()  # that it can be given, the usual one first
    rules: ClassVar[tuple[str, ...]] = ()  # its variants, the usual one first
    defaults: ClassVar[Mapping[str, Any]] = {}  # settings that differ from the defaults of [`ResolvedSettings`]
    explores: ClassVar[bool] = True  # may draw a share of the rows uniformly, and leave out those that score highest
    picks_rows: ClassVar[bool] = True  # and does not change what is learned of all of them
    compares: ClassVar[Literal["rows", "tokens"] | None] = None  # with whose losses of a reference model
    on = False  # in the step under way
    salts: tuple[int, ...] = (0,)  # of the random numbers that a rating may need

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        super().__init__()
        self.resolved = resolved

    def draw(self, seed: int) -> None:
        """Draws what it begins with, in place and from no global generator."""

    def rate(self, reading: HeadInputs) -> Tensor:
        """The scores of a batch, of shape `(batch_size,)`, by what the model answers; of those that see logits."""
        raise NotImplementedError

    def scores(self, pool: Pool) -> Tensor:
        """The scores of the pool, of shape `(rows,)`; the higher, the more is a row wanted."""
        assert pool.seen is not None
        assert pool.seen.ndim == 1
        return pool.seen

    def pick(self, pool: Pool, number: int) -> Tensor:
        """The numbers in the pool, in rising order, of the `number` rows to learn from."""
        return choose(self.scores(pool), pool, number, self.resolved)

    def loss_weight_inputs(self, pool: Pool, kept_N: Tensor) -> Tensor | None:
        """What goes along with the rows that were picked, for `weights`; of shape `(picked,)` or `(picked, ...)`."""
        return None

    def loss_weights(self, losses: TokenLosses, pool: Pool) -> Tensor | None:
        """What the losses of a micro-batch are multiplied by, of shape `(tokens,)`; `None` leaves them as they are.

        Args:
            losses ([`TokenLosses`]): with the hints.
            pool ([`Pool`]): the rows of the whole step.
        """
        return None

    def on_token_losses(self, pool: Pool, told: Sequence[TokenLosses]) -> None:
        """Learns from the losses of single tokens, of the rows that this process has trained on in a step."""

    def learn(self, pool: Pool, losses_N: Tensor) -> None:
        """Learns from the rows that all processes have trained on in a step, and from their mean losses."""

    def sums(self) -> dict[str, Tensor]:
        """What it adds to the tally after a step in which it has learned."""
        return {}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What a log entry says of the strategy, from what it has added to the tally."""
        return {}

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """What to warn of, by what a log entry says."""
        return None


@torch.no_grad()
def push(queue_QD: Tensor, size: Tensor, place: Tensor, rows_ND: Tensor) -> None:
    """Puts rows into a first-in-first-out queue, in place.

    Args:
        queue_QD (`Tensor` of shape `(places, ...)`): the queue.
        size, place (`Tensor`): int64 scalars: how many places are taken, and the next one to be written.
        rows_ND (`Tensor` of shape `(rows, ...)`): of more than there are places, the last.
    """
    rows_ND = rows_ND[-len(queue_QD) :]
    at_N = (place + torch.arange(len(rows_ND), device=rows_ND.device)) % len(queue_QD)
    queue_QD[at_N] = rows_ND.to(queue_QD.dtype)
    place.copy_((place + len(rows_ND)) % len(queue_QD))
    size.copy_((size + len(rows_ND)).clamp(max=len(queue_QD)))
