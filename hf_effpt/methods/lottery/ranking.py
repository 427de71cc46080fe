"""Which weights a round of pruning keeps: scores of single weights, ranked over all matrices together."""

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
    """The score of every weight, higher for those to keep (Zhou et al., 2019, section 2), in fp32.

    Args:
        criterion (`str`): `large_final` is |w_f|, `large_final_same_sign` sign(w_0) w_f, `magnitude_increase`
            |w_f| - |w_0|, and `random` a number of its own.
        final (`Mapping[str, Tensor]`): the trained matrices, w_f.
        first (`Mapping[str, Tensor]`): those they are rewound to, w_0.
        seed (`int`): of the numbers of `random`.
    """
    found = {}
    for index, (name, weight) in enumerate(final.items()):
        trained, start = weight.float(), first[name].float()
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
    """The masks of the `number` best weights that are kept, over all matrices; of equals, those that come first.

    Args:
        scores (`Mapping[str, Tensor]`): of each matrix, of its shape.
        kept (`Mapping[str, Tensor]`): the masks so far; what they have not is not kept again.
        number (`int`): to keep, at most as many as are kept so far.
    """
    flat = torch.cat([torch.where(kept[name], score, -torch.inf).flatten() for name, score in scores.items()])
    if number == len(flat):
        return dict(kept)
    # The best of those that go; whatever else has the same score fills up what is still missing, in order.
    limit = flat.kthvalue(len(flat) - number).values
    above, equal = flat > limit, flat == limit
    chosen = above | (equal & (equal.cumsum(0) <= number - above.sum()))
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}
