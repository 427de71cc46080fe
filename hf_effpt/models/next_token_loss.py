"""Cross-entropy over the vocabulary at every token of a batch, whose logits at once would not fit in memory.

N tokens, D size of the features, V vocabulary.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hf_effpt.core.token_losses import Reduction

from .candidates import chunks


def next_token_loss(
    features_ND: Tensor,
    table_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy in fp32 of the logits `features_ND @ table_VD.T + bias_V`, computed for some tokens at a time.

    Labels, reduction and smoothing are those of [`token_loss`]. The sum has its gradients ready after the forward
    pass, so that no logits are kept or computed twice. Losses by token, which methods weigh, compute them again in
    the backward pass.
    """
    if reduction == "sum":
        return _Summed.apply(features_ND, table_VD, bias_V, labels_N, label_smoothing)
    # Nothing is drawn, so the state of random numbers need not be kept.
    computed = partial(checkpoint, _of_some, use_reentrant=False, preserve_rng_state=False)
    parts = chunks(len(features_ND), len(table_VD))
    return torch.cat(
        [computed(features_ND[part], table_VD, bias_V, labels_N[part], label_smoothing) for part in parts]
    )


def _of_some(
    features_ND: Tensor, table_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, smoothing: float
) -> Tensor:
    logits_NV = nn.functional.linear(features_ND, table_VD, bias_V).float()
    return nn.functional.cross_entropy(
        logits_NV, labels_N, reduction="none", ignore_index=-100, label_smoothing=smoothing
    )


class _Summed(torch.autograd.Function):
    """Summed loss; its gradients are computed beside it, from the logits of some tokens after another."""

    @staticmethod
    def forward(
        ctx: Any, features_ND: Tensor, table_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, smoothing: float
    ) -> Tensor:
        total = features_ND.new_zeros((), dtype=torch.float32)
        learning, of = ctx.needs_input_grad[:3], (features_ND, table_VD, bias_V)
        exact = (features_ND.dtype, torch.float32, torch.float32)  # sums over all tokens
        of_features, of_table, of_bias = (
            torch.zeros_like(tensor, dtype=dtype) if learns and tensor is not None else None
            for tensor, dtype, learns in zip(of, exact, learning, strict=True)
        )
        for part in chunks(len(features_ND), len(table_VD)):
            some_ND, real_N1 = features_ND[part], (labels_N[part] != -100)[:, None]
            wanted_N1 = labels_N[part].clamp(min=0)[:, None]
            logits_NV = nn.functional.linear(some_ND, table_VD, bias_V)
            log_NV = logits_NV.float().log_softmax(dim=1)
            likely_N1 = (1.0 - smoothing) * log_NV.gather(1, wanted_N1)
            if smoothing:
                likely_N1 = likely_N1 + smoothing * log_NV.mean(dim=1, keepdim=True)
            total -= (likely_N1 * real_N1).sum()
            if not any(learning):
                continue
            # The gradient by logits is the probability less what is wanted of it.
            push_NV = log_NV.exp_().sub_(smoothing / len(table_VD))
            push_NV.scatter_add_(1, wanted_N1, torch.full_like(likely_N1, smoothing - 1.0))
            push_NV = push_NV.mul_(real_N1).to(logits_NV.dtype)
            if of_features is not None:
                of_features[part] = push_NV @ table_VD
            if of_table is not None:
                of_table += push_NV.T @ some_ND
            if of_bias is not None:
                of_bias += push_NV.sum(dim=0)
        ctx.save_for_backward(of_features, of_table, of_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in of]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ready = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *[None if one is None else (gradient * one).to(dtype) for one, dtype in ready], None, None
