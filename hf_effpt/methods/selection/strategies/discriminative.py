"""Discriminative active learning: a classifier tells rows not yet trained on from those that were.

N rows of a pool, G those of all processes, S rows drawn from the queue, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam

from hf_effpt.core.processes import gather
from hf_effpt.core.random import places, salted
from hf_effpt.core.shares import part_of
from hf_effpt.methods.selection.picking import by_score, chance, fill_up
from hf_effpt.methods.selection.pool import Pool
from hf_effpt.methods.selection.strategy import ResolvedSettings
from hf_effpt.methods.selection.vectors import Moments, Networks, QueueStrategy, area_under_curve, vector_size

HIDDEN = 128
RATE = 0.001  # learning rate
STEPS = 2  # steps of Adam in each fit
PARTS = 4  # parts in which rows are picked, with a fit before each
CLIP = 10.0  # largest absolute logit
HELD_OUT = 8  # one row in this many is never fitted
RECENT = 0.05  # least weight of a new value in a running average
CHANCE = 0.55  # AUC below which the classifier is taken to know nothing
# `differentiable`: otherwise a step waits for the device to know the number of steps.
ADAM: dict[str, Any] = {
    "lr": RATE, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False,
    "differentiable": True,
}  # fmt: skip
_WEIGHTS, _HELD, _DRAWN, _LOTS, _UNKNOWN = range(0xD15C, 0xD15C + 5)


class Classifier(Networks):
    """Perceptron whose output is the logit of label 1, with its own Adam."""

    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(1, size, HIDDEN)
        self.register_buffer("mean", torch.zeros_like(self.values))
        self.register_buffer("square", torch.zeros_like(self.values))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float32))

    def logits(self, rows_ND: Tensor) -> Tensor:
        """Logits of shape `(rows,)`, clipped to an absolute value of 10."""
        return self(rows_ND)[0][0].clamp(-CLIP, CLIP)

    def state(self) -> list[Tensor]:
        """Copies of all buffers, which are what fitting changes."""
        return [buffer.clone() for buffer in self.buffers()]

    def go_back(self, state: list[Tensor], condition: Tensor | None = None) -> None:
        """Restores a state, if the `condition` on the device is `True`."""
        for buffer, old in zip(self.buffers(), state, strict=True):
            buffer.copy_(old if condition is None else torch.where(condition, old, buffer))

    @torch.no_grad()
    def fit(self, rows_ND: Tensor, labels_N: Tensor, counts_N: Tensor) -> Tensor:
        """Takes two steps on the cross-entropy, in which both labels have equal weight in total.

        Rows are standardised, labels 0 or 1, and counts 1 for rows to learn from, else 0. Returns the logits before.
        """
        ones_N, zeros_N = labels_N * counts_N, (1 - labels_N) * counts_N
        shares_N = (ones_N / ones_N.sum().clamp(min=1) + zeros_N / zeros_N.sum().clamp(min=1)) / 2
        seen = []
        for _ in range(STEPS):
            logits_EN, hidden_ENH = self(rows_ND)
            logits_EN = logits_EN.clamp(-CLIP, CLIP)
            seen.append(logits_EN[0])
            # A clipped logit still has a gradient: otherwise a row that is wrong there would stay wrong.
            slopes_EN = shares_N * (logits_EN.sigmoid() - labels_N)
            gradients = self.gradients(rows_ND, hidden_ENH, slopes_EN)
            adam([self.values], [gradients], [self.mean], [self.square], [], [self.steps], **ADAM)
        return seen[0]


class Discriminative(QueueStrategy):
    """Picks rows that a classifier takes for such as were not trained on recently (Gissin and Shalev-Shwartz, 2019).

    A perceptron learns to tell the rows of the pool from a queue of rows trained on. In each step it learns from the
    rows of all processes, so that it is the same in all. Then each process picks its rows in four parts: after each
    the perceptron learns that the rows picked are trained on now, and after the last it forgets that. Before anything
    was trained on, rows are picked at random.

    In one pass through shuffled text, rows trained on and rows to come do not differ, and nothing can be learned. One
    row in eight, by its key, is never fitted and is picked at random; `auc` measures the classifier on those rows, 0.5
    being chance. If they were picked by their scores, those trained on would have higher scores than the others for
    that reason alone.
    """

    defaults: ClassVar = {"queue": 4096}
    auc: Tensor
    measured: Tensor

    def __init__(self, resolved: ResolvedSettings, config: Any) -> None:
        # The last number of a row of the queue is 1 if the row is held out.
        super().__init__(resolved, config, vector_size(config, resolved.scorer) + 1)
        self.classifier, self.moments = Classifier(self.length), Moments(self.length)
        self.register_buffer("auc", torch.full((), 0.5, dtype=torch.float64))
        self.register_buffer("measured", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        super().draw(seed)
        self.classifier.draw(seed, _WEIGHTS)
        self.auc.fill_(0.5)

    @torch.no_grad()
    def pick(self, pool: Pool, number: int) -> Tensor:
        order_N = pool.ids_N.argsort(stable=True)
        ours = pool.of(order_N)
        vectors_ND, counts_N = self.vectors(ours), _learned_from(ours)
        self._go_on(gather(vectors_ND), gather(counts_N), pool)
        rows_ND = self.moments.standardised(vectors_ND)
        state = self.classifier.state()
        wanted = number - min(number, part_of(self.resolved.explore, number))
        left_out = min(len(pool) - number, part_of(self.resolved.outliers, len(pool)))
        labels_N, picked = torch.ones_like(counts_N), []
        barred_N = torch.zeros_like(counts_N, dtype=torch.bool)
        for part in range(PARTS):
            if part:
                self._fit(rows_ND, labels_N, counts_N, pool, part)
            scores_N = self._scores(rows_ND, ours)
            lots_N = scores_N.sort().values[(chance(ours, _LOTS) * len(ours)).long()]
            scores_N = torch.where(counts_N > 0, scores_N, lots_N)
            if not part:
                barred_N[by_score(scores_N, ours)[:left_out]] = True
            some = wanted * (part + 1) // PARTS - wanted * part // PARTS
            at = by_score(scores_N.masked_fill(barred_N, -torch.inf), ours)[:some]
            barred_N[at], labels_N[at] = True, 0.0
            picked.append(order_N[at])
        self.classifier.go_back(state)
        return fill_up(torch.cat(picked), pool, number)

    @torch.no_grad()
    def learn(self, pool: Pool, losses_N: Tensor) -> None:
        rows_ND = self.vectors(pool)
        self.moments.take(rows_ND)
        self.append(torch.cat([rows_ND, 1 - _learned_from(pool)[:, None]], dim=1))

    def sums(self) -> dict[str, Tensor]:
        known = (self.measured > 0).double()
        return {"selection_auc": self.auc * known, "selection_auc_steps": known}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """`selection_auc`, over about the last twenty steps; nothing before there are held-out rows to compare."""
        steps = sums.get("selection_auc_steps")
        return {"selection_auc": sums["selection_auc"] / steps} if steps else {}

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        if metrics.get("selection_auc", 1.0) >= CHANCE or self.measured * RECENT < 1:
            return None
        return (
            f"`discriminative` cannot tell rows to come from rows trained on (AUC {metrics['selection_auc']:.2f}, 0.5 "
            "is chance), as in one pass over shuffled text, so it picks at random and costs more; use `random`, or "
            "another strategy."
        )

    def _scores(self, rows_ND: Tensor, pool: Pool) -> Tensor:
        """Logits of not having been trained on; random numbers while the queue is empty."""
        return torch.where(self.size > 0, self.classifier.logits(rows_ND).double(), chance(pool, _UNKNOWN))

    def _fit(
        self, rows_ND: Tensor, labels_N: Tensor, counts_N: Tensor, pool: Pool, part: int
    ) -> tuple[Tensor, Tensor]:
        """Fits on rows of the pool, and as many of the queue with label 0; returns logits before, and counts."""
        lots_S = places(self.queue.new_zeros(len(rows_ND)), pool.seed, pool.step, _DRAWN, part)
        drawn_SD = self.queue[(lots_S * self.size).long()]
        rows = torch.cat([rows_ND, self.moments.standardised(drawn_SD[:, :-1])])
        labels, counts = torch.cat([labels_N, torch.zeros_like(labels_N)]), torch.cat([counts_N, 1 - drawn_SD[:, -1]])
        return self.classifier.fit(rows, labels, counts), counts

    def _go_on(self, rows_GD: Tensor, counts_G: Tensor, pool: Pool) -> None:
        """Measures the classifier, then fits it on the rows of all processes."""
        state = self.classifier.state()
        logits, counts = self._fit(self.moments.standardised(rows_GD), torch.ones_like(counts_G), counts_G, pool, 0)
        self.classifier.go_back(state, self.size == 0)
        (scores_G, scores_S), (held_G, held_S) = logits.chunk(2), (1 - counts).chunk(2)
        found = area_under_curve(scores_G, scores_S, held_G, held_S)
        known = (self.size > 0) & (held_G.sum() * held_S.sum() > 0)
        recent = (1.0 / (self.measured + 1)).clamp(min=RECENT)
        self.auc.lerp_(found, torch.where(known, recent, 0.0).double())
        self.measured += known


def _learned_from(pool: Pool) -> Tensor:
    """1 for rows that the classifier is fitted on, 0 for those held out, in fp32."""
    return (salted(pool.keys_N, pool.seed, _HELD) % HELD_OUT != 0).float()
