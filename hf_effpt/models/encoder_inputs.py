"""Inputs of the encoder from those of a model that pre-trains, and how it keeps documents, and later tokens, apart.

B batch, L row length.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.varlen import varlen_attn

from hf_effpt.core.anatomy import attention_of, dropouts_of, first_position, layer_types_of, layers_of
from hf_effpt.core.depth import router_of
from hf_effpt.core.document_layout import DocumentLayout
from hf_effpt.core.errors import EffptError

from .document_blocks import LEAST, DocumentMask, bounds_on

logger = logging.getLogger(__name__)

# Batch keys that are not encoder inputs.
NOT_ENCODED = ("labels", "masked_positions", "num_items_in_batch", "loss_weight_inputs", "return_dict")
# Ways to keep the documents of a row apart.
MASK = "a mask over the whole row"
BLOCKS = "SDPA within blocks"
KERNEL = "torch's kernel for documents of varying length"
FLASH = "flash attention for documents of varying length"
FLEX = "a block mask of flex attention"


def encoder_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder inputs of a batch; what keeps documents apart, and positions, replace `document_ids`.

    An encoder with several kinds of layers gets a mask for each kind. One without token types gets none. If the batch
    is `causal`, no token attends to a later one.
    """
    inputs = {name: value for name, value in batch.items() if name not in NOT_ENCODED}
    config = model.config
    if inputs.get("token_type_ids") is None or not hasattr(config, "type_vocab_size"):
        inputs.pop("token_type_ids", None)
    document_ids, documents = inputs.pop("document_ids", None), inputs.pop("documents", None)
    if causal := inputs.pop("causal", None) is not None:
        check_causal(config)
    if document_ids is not None:
        positions_BL = positions_within(document_ids)
        inputs["position_ids"] = positions_BL + first if (first := first_position(config)) else positions_BL
        inputs |= _apart(model, document_ids, documents, causal)
    elif causal:
        inputs |= _causal(model, inputs)
    return inputs


def check_causal(config: Any) -> None:
    """Raises `EffptError` if the attention of a model of this configuration cannot be causal."""
    if "flash" in (kind := config._attn_implementation):
        raise EffptError(
            f"Next tokens (`clm`) need causal attention, which `attn_implementation: {kind}` has not here; use "
            "`sdpa`, which runs a flash kernel where it can."
        )


def way_apart(model: Any, length: int) -> str:
    """The way in which `model` keeps the documents of rows of `length` tokens apart: the best that is available.

    It follows from `attn_implementation`, and of `sdpa` from the device. There a row below `LEAST` tokens, or one that
    runs through some layers only, has a mask.
    """
    kind = model.config._attn_implementation
    if "flash" in kind:
        return FLASH
    if "flex" in kind:
        return FLEX
    if kind != "sdpa" or length < LEAST or router_of(getattr(model, "backbone", model.base_model)) is not None:
        return MASK
    return KERNEL if _has_kernel(model) else BLOCKS


def _has_kernel(model: Any) -> bool:
    """`True` if torch's kernel can run the model as it is: on recent CUDA, in half precision, without dropout."""
    device = model.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
    dropout = any("att" in name and share for name, share in dropouts_of(model.config).items())
    layers = layers_of(getattr(model, "backbone", model.base_model))
    whole = all(attention_of(layer).head_size % 8 == 0 for layer in layers.children())
    windows = "window_size" in inspect.signature(varlen_attn).parameters
    repeatable = not torch.are_deterministic_algorithms_enabled()
    return dtype in (torch.float16, torch.bfloat16) and not dropout and whole and windows and repeatable


@cache
def _say(way: str) -> None:
    logger.info("documents of a row are kept apart by %s", way)


def _apart(model: Any, document_ids_BL: Tensor, documents: DocumentLayout | None, causal: bool) -> dict[str, Any]:
    """Encoder inputs that keep documents apart; `documents` is their layout, if it is known already."""
    config, way = model.config, way_apart(model, document_ids_BL.shape[1])
    _say(way)
    if way in (BLOCKS, KERNEL, FLASH) and documents is None:
        documents = DocumentLayout.of(document_ids_BL)
    if way == FLASH:
        assert documents is not None
        bounds, longest = bounds_on(documents, document_ids_BL.device), documents.longest
        inputs: dict[str, Any] = {"attention_mask": None, "max_length_q": longest, "max_length_k": longest}
        return inputs | {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}

    def mask(window: int | None) -> Any:
        if way in (BLOCKS, KERNEL):
            assert documents is not None
            return DocumentMask.make(document_ids_BL, documents, window, way == KERNEL, causal)
        return written_out(model, document_ids_BL, window, causal)

    return _by_kind(config, mask)


def _causal(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder inputs with which tokens attend to no later one, nor to padding; rows are not divided."""
    real_BL, config = inputs.get("attention_mask"), model.config
    by_kernel = real_BL is None and config._attn_implementation == "sdpa"  # for which `is_causal` stands for the mask
    if real_BL is None:
        real_BL = torch.ones_like(inputs["input_ids"][:1])

    def mask(window: int | None) -> Any:
        return None if by_kernel and window is None else written_out(model, real_BL, window, causal=True)

    return _by_kind(config, mask) | ({"is_causal": True} if by_kernel else {})


def _by_kind(config: Any, mask: Callable[[int | None], Any]) -> dict[str, Any]:
    """The attention mask, or one for each kind of layers; `mask` makes it for a window."""
    if layer_types_of(config) is None:
        return {"attention_mask": mask(None)}
    return {"attention_mask": {"full_attention": mask(None), "sliding_attention": mask(config.sliding_window)}}


def written_out(model: Any, document_ids_BL: Tensor, window: int | None, causal: bool = False) -> Any:
    """Mask of documents for the attention of `model`, within which tokens attend to those at most `window` apart."""
    config = model.config
    if "flex" in config._attn_implementation:
        return flex_mask(document_ids_BL, window, causal)
    mask_B1LL = isolate_documents(document_ids_BL)
    if window is not None:
        mask_B1LL = mask_B1LL & within(window, document_ids_BL)
    return mask_for(mask_B1LL.tril() if causal else mask_B1LL, config, model.dtype)


def isolate_documents(document_ids_BL: Tensor) -> Tensor:
    """Mask of tokens that each may attend to, that separates documents packed in one row.

    `document_ids_BL`, of shape `(batch_size, sequence_length)`, are numbers within the row, from 1, in order; 0 for
    padding, which attends to padding only. The boolean mask is of shape `(batch_size, 1, sequence_length,
    sequence_length)`.
    """
    return document_ids_BL[:, None, :, None] == document_ids_BL[:, None, None, :]


def positions_within(document_ids_BL: Tensor) -> Tensor:
    """Positions that begin at 0 in each document, as if it had a row of its own; of shape (B, L)."""
    index_L = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device)
    starts_BL = torch.ones_like(document_ids_BL, dtype=torch.bool)
    starts_BL[:, 1:] = document_ids_BL[:, 1:] != document_ids_BL[:, :-1]
    return index_L - torch.where(starts_BL, index_L, 0).cummax(dim=1).values


def flex_mask(document_ids_BL: Tensor, window: int | None, causal: bool = False) -> Any:
    """Block mask of flex attention for documents, within which tokens attend to those at most `window` apart.

    If `causal`, they attend to no later one.
    """

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document_ids_BL[row, query] == document_ids_BL[row, key]
        same = same if window is None else same & ((query - key).abs() <= window)
        return same & (query >= key) if causal else same

    rows, length = document_ids_BL.shape
    on_gpu = document_ids_BL.device.type == "cuda"  # elsewhere compiling takes longer than it saves
    return create_block_mask(sees, rows, None, length, length, device=document_ids_BL.device, _compile=on_gpu)


def within(window: int, like_BL: Tensor) -> Tensor:
    """`True` for tokens at most `window` apart, of shape `(sequence_length, sequence_length)`."""
    index_L = torch.arange(like_BL.shape[1], device=like_BL.device)
    return (index_L[:, None] - index_L).abs() <= window


def mask_for(mask_B1LL: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """A boolean attention mask in the form of the model's attention: an additive one of `dtype` for `eager`."""
    if config._attn_implementation != "eager":
        return mask_B1LL
    return torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill_(~mask_B1LL, torch.finfo(dtype).min)
