"""BERT with narrower layers: the stock classes and parameter names, with fewer heads and neurons in each layer.

This file and its configuration are saved beside the weights and need only `transformers`.
"""

from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from transformers.models.bert.modeling_bert import BertSelfAttention

from .configuration_pruned_bert import PrunedBertConfig


class PrunedBertSelfAttention(BertSelfAttention):
    """Self-attention with fewer heads, or none.

    Args:
        config ([`PrunedBertConfig`]): configuration of the model.
        heads (`int`): number of heads.
        layer_idx (`int`): index of the layer.
    """

    def __init__(self, config, heads, layer_idx):
        super().__init__(config, is_causal=config.is_decoder, layer_idx=layer_idx)
        self.num_attention_heads, self.all_head_size = heads, heads * self.attention_head_size
        for projection in (self.query, self.key, self.value):
            narrow(projection, outputs=self.all_head_size)

    def forward(self, hidden_states, *args, **kwargs):
        """Attends like the stock class; without heads, outputs and attention weights are empty."""
        if self.num_attention_heads:
            return super().forward(hidden_states, *args, **kwargs)
        batch, length = hidden_states.shape[:2]
        eager = self.config._attn_implementation == "eager"  # other implementations give no weights
        weights = hidden_states.new_zeros(batch, 0, length, length) if eager else None
        return hidden_states.new_zeros(batch, length, 0), weights


def narrow(linear, outputs=None, inputs=None):
    """Keeps only the first outputs and inputs of a linear layer, in place."""
    linear.weight = nn.Parameter(linear.weight.detach()[:outputs, :inputs].clone())
    linear.bias = nn.Parameter(linear.bias.detach()[:outputs].clone())
    linear.out_features, linear.in_features = linear.weight.shape


class PrunedBertModel(BertModel):
    """The encoder alone."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModel"  # saving the model saves this file

    def __init__(self, config, add_pooling_layer=True):
        config.check_widths()
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        for index, (heads, neurons) in enumerate(config.layer_widths):
            layer = self.encoder.layer[index]
            layer.attention.self = PrunedBertSelfAttention(config, heads, layer_idx=index)
            narrow(layer.attention.output.dense, inputs=layer.attention.self.all_head_size)
            narrow(layer.intermediate.dense, outputs=neurons)
            narrow(layer.output.dense, inputs=neurons)
        self.post_init()


class PrunedBertHead:
    """Replaces the encoder of a stock class with a head by the narrower one; placed before it in the bases."""

    config_class = PrunedBertConfig
    accepts_loss_kwargs = False  # the stock loss is a mean: the Trainer has to divide it by the accumulation

    def __init__(self, config):
        checkpointing = getattr(config, "gradient_checkpointing", False)
        super().__init__(config)
        if checkpointing:  # the encoder that is replaced has taken it out of the configuration
            config.gradient_checkpointing = True
        self.bert = PrunedBertModel(config, add_pooling_layer=self.bert.pooler is not None)
        self.post_init()


class PrunedBertForMaskedLM(PrunedBertHead, BertForMaskedLM):
    """With a masked-language-modelling head."""

    _auto_class = "AutoModelForMaskedLM"


class PrunedBertForMultipleChoice(PrunedBertHead, BertForMultipleChoice):
    """With a multiple-choice head."""

    _auto_class = "AutoModelForMultipleChoice"


class PrunedBertForQuestionAnswering(PrunedBertHead, BertForQuestionAnswering):
    """With a span-extraction head for question answering."""

    _auto_class = "AutoModelForQuestionAnswering"


class PrunedBertForSequenceClassification(PrunedBertHead, BertForSequenceClassification):
    """With a sequence classification head."""

    _auto_class = "AutoModelForSequenceClassification"


class PrunedBertForTokenClassification(PrunedBertHead, BertForTokenClassification):
    """With a token classification head."""

    _auto_class = "AutoModelForTokenClassification"


__all__ = [
    "PrunedBertForMaskedLM",
    "PrunedBertForMultipleChoice",
    "PrunedBertForQuestionAnswering",
    "PrunedBertForSequenceClassification",
    "PrunedBertForTokenClassification",
    "PrunedBertModel",
]
