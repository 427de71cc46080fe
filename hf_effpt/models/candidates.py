"""Logits of a few candidates per position, and log-probabilities of one token per position, in bounded memory.

The embeddings of all candidates and the logits over the vocabulary of a whole batch would not fit in memory: both are
computed for some positions at a time, and again in the backward pass.
N positions, K candidates per position, D embedding size, V vocabulary.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Elements of a temporary tensor: about 1,024 positions of 10 candidates in 768 dimensions, or of 8,192 tokens.
BOUND = 1 << 23


def chunks(positions: int, width: int) -> Iterator[slice]:
    """Consecutive slices of `positions` positions; with `width` numbers per position each stays within `BOUND`."""
    rows = max(1, BOUND // width)
    return (slice(first, min(first + rows, positions)) for first in range(0, positions, rows))


def candidate_logits(output_ND: Tensor, table_VD: Tensor, bias_V: Tensor, candidates_NK: Tensor) -> Tensor:
    """Logits of some tokens of the vocabulary, in float32, of shape `(positions, candidates)`.

    `output_ND` is the input of the output embedding, `table_VD` its weights; candidates are rows of the table.
    """
    return _Gathered.apply(output_ND, table_VD, candidates_NK) + bias_V.float()[candidates_NK]


class _Gathered(torch.autograd.Function):
    """Products with gathered rows of a table; the backward pass gathers them again."""

    @staticmethod
    def forward(ctx: Any, output_ND: Tensor, table_VD: Tensor, candidates_NK: Tensor) -> Tensor:
        ctx.save_for_backward(output_ND, table_VD, candidates_NK)
        products_NK = output_ND.new_empty(candidates_NK.shape, dtype=torch.float32)
        for part in chunks(len(output_ND), candidates_NK.shape[1] * table_VD.shape[1]):
            rows_NKD = table_VD[candidates_NK[part]].to(output_ND.dtype)
            products_NK[part] = torch.bmm(rows_NKD, output_ND[part, :, None])[:, :, 0]
        return products_NK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NK: Tensor) -> tuple[Tensor, Tensor, None]:
        output_ND, table_VD, candidates_NK = ctx.saved_tensors
        to_output_ND, to_table_VD = torch.empty_like(output_ND), torch.zeros_like(table_VD)
        for part in chunks(len(output_ND), candidates_NK.shape[1] * table_VD.shape[1]):
            some_NK, wanted_NK = candidates_NK[part], gradient_NK[part].to(output_ND.dtype)
            rows_NKD = table_VD[some_NK].to(output_ND.dtype)
            to_output_ND[part] = torch.bmm(wanted_NK[:, None], rows_NKD)[:, 0]
            pushes_NKD = wanted_NK[:, :, None] * output_ND[part, None]
            to_table_VD.index_add_(0, some_NK.flatten(), pushes_NKD.flatten(0, 1).to(table_VD.dtype))
        return to_output_ND, to_table_VD, None


def log_probabilities(output_ND: Tensor, table_VD: Tensor, bias_V: Tensor, wanted_N: Tensor) -> Tensor:
    """Log-probability of the token `wanted_N` of each position under a softmax over the vocabulary.

    The other arguments are as in [`candidate_logits`]; the result is of shape `(positions,)`.
    """
    # Nothing is drawn, so the state of random numbers need not be kept.
    computed = partial(checkpoint, _log_probabilities, use_reentrant=False, preserve_rng_state=False)
    parts = chunks(len(output_ND), len(table_VD))
    return torch.cat([computed(output_ND[part], table_VD, bias_V, wanted_N[part]) for part in parts])


def _log_probabilities(output_ND: Tensor, table_VD: Tensor, bias_V: Tensor, wanted_N: Tensor) -> Tensor:
    logits_NV = nn.functional.linear(output_ND, table_VD, bias_V)
    return -nn.functional.cross_entropy(logits_NV.float(), wanted_N, reduction="none")
