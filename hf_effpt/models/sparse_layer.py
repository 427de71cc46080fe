"""A transformer layer that computes outputs at some positions only.

A masked-language-modelling head reads the last layer at masked positions only, so queries, the attention's output
projection and the feed-forward block are needed there only; keys and values are needed everywhere.
B batch, L row length, M positions per row, D hidden size, H heads, K head size.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward as bert_attention
from transformers.models.modernbert.modeling_modernbert import eager_attention_forward as modernbert_attention
from transformers.models.modernbert.modeling_modernbert import rotate_half

from hf_effpt.core.anatomy import DROPOUTS
from hf_effpt.core.depth import stack_of

from .document_blocks import DocumentMask

SPARSE = ("eager", "sdpa")  # kinds of attention that take any queries


def gather_rows(hidden_BLD: Tensor, positions_BM: Tensor) -> Tensor:
    """Hidden states at some positions of every row, of shape `(batch_size, positions, hidden_size)`."""
    return hidden_BLD.gather(1, positions_BM[:, :, None].expand(-1, -1, hidden_BLD.shape[-1]))


def positions_of(labels_BL: Tensor) -> Tensor:
    """Positions of the labels, padded with other positions to the largest number in a row; waits for the device."""
    chosen_BL = labels_BL != -100
    return chosen_BL.int().argsort(dim=1, descending=True, stable=True)[:, : most_labels(labels_BL)]


def labels_at(labels_BL: Tensor, positions_BM: Tensor) -> Tensor:
    """Labels at some positions of every row; -100 where a position repeats one before, so that it counts once."""
    repeated_BM = (positions_BM[:, :, None] == positions_BM[:, None]).tril(-1).any(dim=2)
    return labels_BL.gather(1, positions_BM).masked_fill(repeated_BM, -100)


def most_labels(labels_BL: Tensor) -> int:
    """Largest number of labels in a row, at least 1; waits for the device."""
    return max(1, int((labels_BL != -100).sum(dim=1).max()))


def drops(config: Any) -> bool:
    """`True` if a model of this configuration draws dropout in training."""
    settings = vars(config)  # reading an attribute of a configuration is a call of Python's
    for name in DROPOUTS:
        if settings.get(name, 0.0) > 0:
            return True
    return False


def encode_at(encoder: Any, positions_BM: Tensor, *args: Any, **inputs: Any) -> tuple[Any, Tensor]:
    """The outputs of an encoder with a `LayerStack`, and its last hidden states at some positions of every row.

    The last layer computes only these, and `last_hidden_state` holds only these, unless something else reads it or
    dropout would draw other numbers.
    """
    stack, config = stack_of(encoder), encoder.config
    read = inputs.get("output_hidden_states", config.output_hidden_states)
    read = read or inputs.get("output_attentions", config.output_attentions)
    read = read or (encoder.training and (stack.read_whole or drops(config)))
    able = config._attn_implementation in SPARSE and not stack.computes_whole and not inputs.get("is_causal")
    sparse = able and not read and bool(stack.active)
    stack.last = partial(layer_at, positions_BM=positions_BM) if sparse else None
    try:
        outputs = encoder(*args, return_dict=True, **inputs)
    finally:
        stack.last = None
    hidden = outputs.last_hidden_state
    return outputs, hidden if sparse else gather_rows(hidden, positions_BM)


def layer_at(
    layer: Any,
    hidden_BLD: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    positions_BM: Tensor,
    **kwargs: Any,
) -> Tensor:
    """Outputs of a stock layer at some positions of each row, of shape `(batch_size, positions, hidden_size)`."""
    parts = layer._modules
    if "attn" in parts:
        return _modern_at(positions_BM, layer, hidden_BLD, attention_mask, *args, **kwargs)
    if "ffn" in parts:  # DistilBERT's is computed whole
        return gather_rows(layer(hidden_BLD, attention_mask, *args, **kwargs), positions_BM)
    attention = layer.attention.self
    wanted_BMD = gather_rows(hidden_BLD, positions_BM)
    size = attention.attention_head_size
    if attention.num_attention_heads:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, bert_attention)
        mixed_BMHK, _ = attend(
            attention,
            _heads(attention.query(wanted_BMD), size),
            _heads(attention.key(hidden_BLD), size),
            _heads(attention.value(hidden_BLD), size),
            None if attention_mask is None else _mask_rows(attention_mask, positions_BM),
            dropout=attention.dropout.p if attention.training else 0.0,
            scaling=attention.scaling,
        )
    else:
        mixed_BMHK = wanted_BMD.new_zeros(*wanted_BMD.shape[:2], 0, size)
    attended_BMD = layer.attention.output(mixed_BMHK.flatten(2), wanted_BMD)
    return layer.feed_forward_chunk(attended_BMD)


def _modern_at(
    positions_BM: Tensor,
    layer: Any,
    hidden_BLD: Tensor,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    attention = layer.attn
    wanted_BMD = gather_rows(hidden_BLD, positions_BM)
    if attention.Wo.in_features:
        assert position_embeddings is not None
        query_BMX, pair_BLX = _project(attention.Wqkv, layer.attn_norm(hidden_BLD), positions_BM)
        keys_BLX, values_BLX = pair_BLX.chunk(2, dim=-1)
        everywhere = [turn.expand(len(hidden_BLD), -1, -1) for turn in position_embeddings]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, modernbert_attention)
        mixed_BMHK, _ = attend(
            attention,
            _rotated(_heads(query_BMX, attention.head_dim), *[gather_rows(turn, positions_BM) for turn in everywhere]),
            _rotated(_heads(keys_BLX, attention.head_dim), *everywhere),
            _heads(values_BLX, attention.head_dim),
            None if attention_mask is None else _mask_rows(attention_mask, positions_BM),
            dropout=attention.attention_dropout if attention.training else 0.0,
            scaling=attention.head_dim**-0.5,
        )
    else:
        mixed_BMHK = wanted_BMD.new_zeros(*wanted_BMD.shape[:2], 0, attention.head_dim)
    attended_BMD = wanted_BMD + attention.out_drop(attention.Wo(mixed_BMHK.flatten(2)))
    return attended_BMD + layer.mlp(layer.mlp_norm(attended_BMD))


def _project(fused: nn.Linear, normed_BLD: Tensor, positions_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Queries at some positions, and keys and values, side by side, at all, of a projection that has all three."""
    size = fused.out_features // 3
    if type(fused) is not nn.Linear:  # one with masks or adapters, which is known as a whole only
        query_BLX, pair_BLX = fused(normed_BLD).split([size, 2 * size], dim=-1)
        return gather_rows(query_BLX, positions_BM), pair_BLX
    (queries, pairs), (of_queries, of_pairs) = (
        (None, None) if of is None else (of[:size], of[size:]) for of in (fused.weight, fused.bias)
    )
    linear = nn.functional.linear
    return linear(gather_rows(normed_BLD, positions_BM), queries, of_queries), linear(normed_BLD, pairs, of_pairs)


def _rotated(states_BHLK: Tensor, cos_BLK: Tensor, sin_BLK: Tensor) -> Tensor:
    """Queries or keys turned by their positions (rotary embeddings), in fp32 as in the stock layer."""
    exact = states_BHLK.float()
    return (exact * cos_BLK[:, None] + rotate_half(exact) * sin_BLK[:, None]).to(states_BHLK.dtype)


def _heads(projected_BLX: Tensor, size: int) -> Tensor:
    """Splits projections into heads, of shape `(batch_size, heads, length, size)`."""
    return projected_BLX.unflatten(-1, (-1, size)).transpose(1, 2)


def _mask_rows(attention_mask: Tensor, positions_BM: Tensor) -> Tensor:
    """Rows of a mask of shape `(batch_size, 1, sequence_length or 1, sequence_length)` for some positions."""
    if isinstance(attention_mask, DocumentMask):
        return attention_mask.at(positions_BM)
    if attention_mask.shape[2] == 1:
        return attention_mask
    rows = positions_BM[:, None, :, None].expand(-1, -1, -1, attention_mask.shape[3])
    return attention_mask.expand(len(positions_BM), -1, -1, -1).gather(2, rows)
