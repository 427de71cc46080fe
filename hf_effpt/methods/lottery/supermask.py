"""Supermasks: weights stay as they are, and masks of them are learned (Zhou et al., 2019).

s scores, p = sigmoid(s), m the mask that is drawn.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_effpt.core.precision import KeepsPrecision
from hf_effpt.core.random import places

from .masks import Masks, prunable


class Supermask(KeepsPrecision, Masks):
    """Masks that are drawn anew in every step, with a learned probability for each weight.

    Scores stay in fp32, have no weight decay, and a peak learning rate of their own. In evaluation a weight is kept if
    its probability is at least one half. With `rescale` a matrix is divided by the share of it that is kept.
    """

    no_weight_decay = True

    def __init__(self, backbone: Any, learning_rate: float, rescale: bool = False) -> None:
        super().__init__(backbone, persistent=False)
        self.learning_rate, self.rescale = learning_rate, rescale
        self.names = list(prunable(backbone))
        self.scores = nn.ParameterList(
            nn.Parameter(torch.zeros_like(mask, dtype=torch.float32)) for mask in self.buffers()
        )

    def reset_missing_parameters(self) -> None:
        """Initialises the scores if the loaded weights have none."""
        for score in self.scores:
            if not getattr(score, "_is_hf_initialized", False) and not score.is_meta:
                nn.init.zeros_(score)
        for mask in self.buffers():
            if not mask.is_meta:
                mask.fill_(True)  # nothing has been drawn yet

    @torch.no_grad()
    def draw(self, names: Iterable[str], step: int, seed: int) -> None:
        """Draws the masks of some matrices, in this order, for an optimizer step."""
        masks, scores = super().kept(), dict(zip(self.names, self.scores, strict=True))
        for index, name in enumerate(names):
            masks[name].copy_(places(scores[name], seed, step, index) < scores[name].sigmoid())

    def kept(self) -> dict[str, Tensor]:
        """Masks of evaluation."""
        return {name: score >= 0 for name, score in zip(self.names, self.scores, strict=True)}

    def masked(self, linear: nn.Linear) -> Tensor:
        """Matrix of a module as the forward pass uses it; scores learn as if m were p (straight-through)."""
        score = self.scores[self.names.index(linear.__dict__["masked_as"])]
        if self.training:
            drawn = self.mask_of(linear).to(score.dtype)
            p = score.sigmoid()
            m = drawn + (p - p.detach())
        else:
            drawn = m = (score >= 0).to(score.dtype)
        if self.rescale:
            m = m / drawn.mean().clamp(min=1 / drawn.numel())
        return (linear.weight.detach() * m).to(linear.weight.dtype)
