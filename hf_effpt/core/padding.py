"""The mask of tokens and padding of a batch."""

import torch
from torch import Tensor


def real_tokens(
    like: Tensor,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    input_ids: Tensor | None = None,
    pad: int | None = None,
) -> Tensor:
    """`True` at tokens and `False` at padding, of shape `(batch_size, sequence_length)`.

    Args:
        like (`Tensor` of shape `(batch_size, sequence_length, ...)`): gives the shape and the device.
        attention_mask (`Tensor`, *optional*): 1 at tokens; ignored unless of shape `(batch_size, sequence_length)`.
        document_ids (`Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 at padding; has priority.
        input_ids (`Tensor` of shape `(batch_size, sequence_length)`, *optional*): equal to `pad` at padding.
    """
    if document_ids is not None:
        return document_ids > 0
    real_BL = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if input_ids is not None and pad is not None:
        real_BL = input_ids != pad
    if attention_mask is not None and attention_mask.ndim == 2:
        real_BL = real_BL & (attention_mask == 1)
    return real_BL
