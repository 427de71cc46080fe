"""Ranking of single weights over all matrices together."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from hf_effpt.core.random import places

Criterion = Literal["large_final", "large_final_same_sign", "magnitude_increase", "random"]
_RANDOM = 0x10C1  # sets these draws apart from others of the same seed


@torch.no_grad()
def scores_of(
    criterion: Criterion, final: Mapping[str, Tensor], first: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Scores of all weights in fp32, higher for those to keep (Zhou et al., 2019, section 2).

    Args:
        criterion (`str`): criterion of [`Lottery`]; `seed` is for `random`.
        final (`Mapping[str, Tensor]`): trained matrices.
        first (`Mapping[str, Tensor]`): matrices they are rewound to.
    """
    found = {}
    for index, (name, weight) in enumerate(final.items()):
        trained, start = weight.float(), first[name].float()  # w_f and w_0 in the paper
        if criterion == "large_final":
            found[name] = trained.abs()
        elif criterion == "large_final_same_sign":
            found[name] = start.sign() * trained
        elif criterion == "magnitude_increase":
            found[name] = trained.abs() - start.abs()
        else:
            found[name] = places(trained, seed, _RANDOM, index).float()
    return found


@torch.no_grad()
def best(scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Masks of the `number` highest `scores` over all matrices; of equal scores those that come first.

    Weights that the masks `kept` lack stay pruned; `number` is at most that of the others.
    """
    flat = torch.cat([torch.where(kept[name], score, -torch.inf).flatten() for name, score in scores.items()])
    if number == len(flat):
        return dict(kept)
    # `limit` is the best score of those that go; of the weights that have it, the first fill up the number.
    limit = flat.kthvalue(len(flat) - number).values
    above, equal = flat > limit, flat == limit
    chosen = above | (equal & (equal.cumsum(0) <= number - above.sum()))
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}
