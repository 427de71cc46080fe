"""The mask of tokens and padding of a batch."""

from typing import Any

import torch
from torch import Tensor


def real_tokens(
    like: Tensor,
    attention_mask: Any = None,
    document_ids: Tensor | None = None,
    input_ids: Tensor | None = None,
    pad: int | None = None,
) -> Tensor:
    """`True` at tokens and `False` at padding, of shape `(batch_size, sequence_length)`, the first two of `like`.

    Padding has 0 in `document_ids`, if given; else `pad` in `input_ids`, or no 1 in `attention_mask`, which is ignored
    unless it has that shape.
    """
    if document_ids is not None:
        return document_ids > 0
    real_BL = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if input_ids is not None and pad is not None:
        real_BL = input_ids != pad
    if getattr(attention_mask, "ndim", 0) == 2:  # a ModernBERT may be given a mask for each kind of layer
        real_BL = real_BL & (attention_mask == 1)
    return real_BL
