"""A transformer layer that computes outputs at some positions only.

A masked-language-modelling head reads the last layer at masked positions only, so queries, the attention's output
projection and the feed-forward block are needed there only; keys and values are needed everywhere.
B batch, L row length, M positions per row, D hidden size, H heads, K head size.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from hf_effpt.core.depth import stack_of


def gather_rows(hidden_BLD: Tensor, positions_BM: Tensor) -> Tensor:
    """Hidden states at some positions of every row, of shape `(batch_size, positions, hidden_size)`."""
    return hidden_BLD.gather(1, positions_BM[:, :, None].expand(-1, -1, hidden_BLD.shape[-1]))


def positions_of(labels_BL: Tensor) -> Tensor:
    """Positions of the labels, padded with other positions to the largest number in a row; waits for the device."""
    chosen_BL = labels_BL != -100
    return chosen_BL.int().argsort(dim=1, descending=True, stable=True)[:, : most_labels(labels_BL)]


def most_labels(labels_BL: Tensor) -> int:
    """Largest number of labels in a row, at least 1; waits for the device."""
    return max(1, int((labels_BL != -100).sum(dim=1).max()))


def drops(config: Any) -> bool:
    """`True` if a model of this configuration draws dropout in training."""
    return max(config.hidden_dropout_prob, config.attention_probs_dropout_prob) > 0


def encode_at(encoder: Any, positions_BM: Tensor, *args: Any, **inputs: Any) -> tuple[Any, Tensor]:
    """The outputs of an encoder with a `LayerStack`, and its last hidden states at some positions of every row.

    The last layer computes only these, and `last_hidden_state` holds only these, unless something else reads it or
    dropout would draw other numbers.
    """
    stack, config = stack_of(encoder), encoder.config
    read = inputs.get("output_hidden_states", config.output_hidden_states)
    read = read or inputs.get("output_attentions", config.output_attentions)
    read = read or (encoder.training and (stack.read_whole or drops(config)))
    sparse = not read and bool(stack.active) and config._attn_implementation in ("eager", "sdpa")
    stack.last = partial(layer_at, positions_BM) if sparse else None
    try:
        outputs = encoder(*args, return_dict=True, **inputs)
    finally:
        stack.last = None
    hidden = outputs.last_hidden_state
    return outputs, hidden if sparse else gather_rows(hidden, positions_BM)


def layer_at(
    positions_BM: Tensor,
    layer: nn.Module,
    hidden_BLD: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Outputs of a stock BERT layer at some positions of each row, of shape `(batch_size, positions, hidden_size)`.

    `attention_mask`, if there is one, is of shape `(batch_size, 1, sequence_length or 1, sequence_length)`.
    """
    attention = layer.attention.self
    wanted_BMD = gather_rows(hidden_BLD, positions_BM)

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)

    if attention_mask is not None and attention_mask.shape[2] > 1:
        rows = positions_BM[:, None, :, None].expand(-1, -1, -1, attention_mask.shape[3])
        attention_mask = attention_mask.expand(len(positions_BM), -1, -1, -1).gather(2, rows)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    if attention.num_attention_heads:
        mixed_BMHK, _ = attend(
            attention,
            heads(attention.query(wanted_BMD)),
            heads(attention.key(hidden_BLD)),
            heads(attention.value(hidden_BLD)),
            attention_mask,
            dropout=attention.dropout.p if attention.training else 0.0,
            scaling=attention.scaling,
        )
    else:
        mixed_BMHK = wanted_BMD.new_zeros(*wanted_BMD.shape[:2], 0, attention.attention_head_size)
    attended_BMD = layer.attention.output(mixed_BMHK.flatten(2), wanted_BMD)
    return layer.feed_forward_chunk(attended_BMD)
