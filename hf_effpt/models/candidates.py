"""Logits of a few candidates a position, and log-probabilities of one token a position, in bounded memory.

The embeddings of the candidates, and logits over the vocabulary, would not fit for a whole batch: both are computed
for some positions at a time, in the backward pass anew.
N positions, K candidates a position, D embedding size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Numbers that a tensor may have: 1,024 positions of 10 candidates in 768 dimensions, or of a vocabulary of 8,192.
BOUND = 1 << 23


def chunks(positions: int, width: int) -> Iterator[slice]:
    """Consecutive slices of so many positions, each so short that `width` numbers a position stay below the bound."""
    rows = max(1, BOUND // width)
    return (slice(first, min(first + rows, positions)) for first in range(0, positions, rows))


def candidate_logits(output_ND: Tensor, table_VD: Tensor, bias_V: Tensor, candidates_NK: Tensor) -> Tensor:
    """The logits that a head over the vocabulary would give to some of its tokens, in float32.

    Args:
        output_ND (`Tensor` of shape `(positions, embedding_size)`): what the head multiplies with the table.
        table_VD (`Tensor` of shape `(vocab_size, embedding_size)`), bias_V (`Tensor` of shape `(vocab_size,)`).
        candidates_NK (`Tensor` of shape `(positions, candidates)`): rows of the table.

    Returns:
        A tensor of shape `(positions, candidates)`.
    """
    return _Gathered.apply(output_ND, table_VD, candidates_NK) + bias_V.float()[candidates_NK]


class _Gathered(torch.autograd.Function):
    """Products with gathered rows of a table, which are gathered again for the gradient."""

    @staticmethod
    def forward(ctx: Any, output_ND: Tensor, table_VD: Tensor, candidates_NK: Tensor) -> Tensor:
        ctx.save_for_backward(output_ND, table_VD, candidates_NK)
        products_NK = output_ND.new_empty(candidates_NK.shape, dtype=torch.float32)
        for part in chunks(len(output_ND), _width(table_VD, candidates_NK)):
            rows_NKD = table_VD[candidates_NK[part]].to(output_ND.dtype)
            products_NK[part] = torch.bmm(rows_NKD, output_ND[part, :, None])[:, :, 0]
        return products_NK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NK: Tensor) -> tuple[Tensor, Tensor, None]:
        output_ND, table_VD, candidates_NK = ctx.saved_tensors
        to_output_ND, to_table_VD = torch.empty_like(output_ND), torch.zeros_like(table_VD)
        for part in chunks(len(output_ND), _width(table_VD, candidates_NK)):
            some_NK, wanted_NK = candidates_NK[part], gradient_NK[part].to(output_ND.dtype)
            rows_NKD = table_VD[some_NK].to(output_ND.dtype)
            to_output_ND[part] = torch.bmm(wanted_NK[:, None], rows_NKD)[:, 0]
            pushes_NKD = wanted_NK[:, :, None] * output_ND[part, None]
            to_table_VD.index_add_(0, some_NK.flatten(), pushes_NKD.flatten(0, 1).to(table_VD.dtype))
        return to_output_ND, to_table_VD, None


def _width(table_VD: Tensor, candidates_NK: Tensor) -> int:
    return candidates_NK.shape[1] * table_VD.shape[1]


def log_probabilities(output_ND: Tensor, table_VD: Tensor, bias_V: Tensor, wanted_N: Tensor) -> Tensor:
    """The log-probability of one token a position under a softmax over the vocabulary, of shape `(positions,)`.

    Args:
        output_ND, table_VD, bias_V: as in [`candidate_logits`].
        wanted_N (`Tensor` of shape `(positions,)`): the tokens.
    """
    parts = [
        checkpoint(
            _log_probabilities,
            output_ND[part],
            table_VD,
            bias_V,
            wanted_N[part],
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
        )
        for part in chunks(len(output_ND), len(table_VD))
    ]
    return torch.cat(parts)


def _log_probabilities(output_ND: Tensor, table_VD: Tensor, bias_V: Tensor, wanted_N: Tensor) -> Tensor:
    logits_NV = nn.functional.linear(output_ND, table_VD, bias_V)
    return -nn.functional.cross_entropy(logits_NV.float(), wanted_N, reduction="none")
