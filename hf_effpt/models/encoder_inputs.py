"""Inputs of the encoder from those of a model that learns from masked text.

B batch, L row length.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.anatomy import first_position, layer_types_of

# Batch keys that are not encoder inputs.
NOT_ENCODED = ("labels", "masked_positions", "num_items_in_batch", "loss_weight_inputs", "return_dict")


def encoder_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder inputs of a masked batch; an attention mask and positions replace `document_ids`.

    An encoder with several kinds of layers gets a mask for each kind. One without token types gets none.
    """
    inputs = {name: value for name, value in batch.items() if name not in NOT_ENCODED}
    config = model.config
    if inputs.get("token_type_ids") is None or not hasattr(config, "type_vocab_size"):
        inputs.pop("token_type_ids", None)
    document_ids = inputs.pop("document_ids", None)
    if document_ids is not None:
        mask_B1LL, positions_BL = isolate_documents(document_ids)
        inputs["position_ids"] = positions_BL + first if (first := first_position(config)) else positions_BL
        if layer_types_of(config) is None:
            inputs["attention_mask"] = mask_for(mask_B1LL, config, model.dtype)
        else:
            near_B1LL = mask_B1LL & within(config.sliding_window, document_ids)
            inputs["attention_mask"] = {
                "full_attention": mask_for(mask_B1LL, config, model.dtype),
                "sliding_attention": mask_for(near_B1LL, config, model.dtype),
            }
    return inputs


def isolate_documents(document_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that each may attend to, and positions, that separate documents packed in one row.

    `document_ids_BL`, of shape `(batch_size, sequence_length)`, are numbers within the row, from 1, in order; 0 for
    padding, which attends to padding only. The boolean mask is of shape `(batch_size, 1, sequence_length,
    sequence_length)`. Positions begin at 0 in each document, as if it had a row of its own.
    """
    mask_B1LL = document_ids_BL[:, None, :, None] == document_ids_BL[:, None, None, :]
    index_L = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device)
    starts_BL = torch.ones_like(document_ids_BL, dtype=torch.bool)
    starts_BL[:, 1:] = document_ids_BL[:, 1:] != document_ids_BL[:, :-1]
    first_BL = torch.where(starts_BL, index_L, 0).cummax(dim=1).values
    return mask_B1LL, index_L - first_BL


def within(window: int, like_BL: Tensor) -> Tensor:
    """`True` for tokens at most `window` apart, of shape `(sequence_length, sequence_length)`."""
    index_L = torch.arange(like_BL.shape[1], device=like_BL.device)
    return (index_L[:, None] - index_L).abs() <= window


def mask_for(mask_B1LL: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """A boolean attention mask in the form of the model's attention: an additive one of `dtype` for `eager`."""
    if config._attn_implementation != "eager":
        return mask_B1LL
    return torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill_(~mask_B1LL, torch.finfo(dtype).min)
