"""Exact sampling from a softmax, in float32 whatever the precision of the logits.

A uniform number per draw is looked up in the cumulative distribution. It depends only on row, place and draw, so a row
gets the same draws in every batch, process and resumed run, and no random number generator advances.
B batch, M positions per row, N positions in all, K draws, V vocabulary.
"""

import torch
from torch import Tensor

from hf_effpt.core.random import uniform

_PLACE, _DRAW = 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179


def uniforms(keys_B: Tensor, places_BM: Tensor, draws: int) -> Tensor:
    """Numbers in [0, 1) that depend on row, place and draw only, of shape `(batch_size, positions, draws)`.

    Places are those among the tokens of a row, without padding.
    """
    draws_K = torch.arange(draws, device=keys_B.device)
    return uniform(keys_B[:, None, None] + places_BM[:, :, None] * _PLACE + draws_K * _DRAW)


def sample(logits_NV: Tensor, uniform_NK: Tensor) -> Tensor:
    """Draws from softmax(logits) with replacement, of shape `(positions, draws)`, by numbers from [`uniforms`].

    Logits are of any floating dtype; `-inf` excludes a token.
    """
    return _look_up(_weights(logits_NV), uniform_NK)


def sample_distinct(logits_NV: Tensor, uniform_NK: Tensor) -> Tensor:
    """Draws as [`sample`], without replacement.

    The distribution is that of Gumbel top-k (Kool et al., 2019, arXiv 1903.06059), without V random numbers per
    position.
    """
    weights_NV = _weights(logits_NV)
    drawn = []
    for uniform_N1 in uniform_NK.split(1, dim=1):
        drawn.append(_look_up(weights_NV, uniform_N1))
        weights_NV = weights_NV.scatter(1, drawn[-1], 0.0)
    return torch.cat(drawn, dim=1)


def _weights(logits_NV: Tensor) -> Tensor:
    logits_NV = logits_NV.detach().float()
    return (logits_NV - logits_NV.amax(dim=1, keepdim=True)).exp()


def _look_up(weights_NV: Tensor, uniform_NK: Tensor) -> Tensor:
    cumulative_NV = weights_NV.cumsum(dim=1)
    total_N1 = cumulative_NV[:, -1:]
    # In float32 a number just below 1 may round to 1, which would look up an entry past the last possible one.
    below_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    wanted_NK = torch.minimum((uniform_NK * total_N1.double()).float(), below_N1)
    return torch.searchsorted(cumulative_NV, wanted_NK, right=True).clamp_(max=weights_NV.shape[1] - 1)
