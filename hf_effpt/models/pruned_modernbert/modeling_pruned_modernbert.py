"""ModernBERT with narrower layers: the stock classes and parameter names, with fewer heads and neurons in each layer.

This file and its configuration are saved beside the weights and need only `transformers`.
"""

from torch import nn
from transformers import (
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)
from transformers.models.modernbert.modeling_modernbert import ModernBertAttention

from .configuration_pruned_modernbert import PrunedModernBertConfig


class PrunedModernBertAttention(ModernBertAttention):
    """Attention with fewer heads, or none.

    Args:
        config ([`PrunedModernBertConfig`]): configuration of the model.
        heads (`int`): number of heads.
        layer_idx (`int`): index of the layer.
    """

    def __init__(self, config, heads, layer_idx):
        super().__init__(config, layer_idx=layer_idx)
        self.heads, size = heads, heads * self.head_dim
        narrow(self.Wqkv, outputs=3 * size)
        narrow(self.Wo, inputs=size)

    def forward(self, hidden_states, *args, **kwargs):
        """Attends like the stock class; without heads, the output is that of no input, and weights are empty."""
        if self.heads:
            return super().forward(hidden_states, *args, **kwargs)
        batch, length = hidden_states.shape[:2]
        eager = self.config._attn_implementation == "eager"  # other implementations give no weights
        weights = hidden_states.new_zeros(batch, 0, length, length) if eager else None
        return self.out_drop(self.Wo(hidden_states.new_zeros(batch, length, 0))), weights


def narrow(linear, outputs=None, inputs=None):
    """Keeps only the first outputs and inputs of a linear layer, in place."""
    linear.weight = nn.Parameter(linear.weight.detach()[:outputs, :inputs].clone())
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:outputs].clone())
    linear.out_features, linear.in_features = linear.weight.shape


class PrunedModernBertModel(ModernBertModel):
    """The encoder alone."""

    config_class = PrunedModernBertConfig
    _auto_class = "AutoModel"  # saving the model saves this file

    def __init__(self, config):
        config.check_widths()
        super().__init__(config)
        for index, (heads, neurons) in enumerate(config.layer_widths):
            layer = self.layers[index]
            layer.attn = PrunedModernBertAttention(config, heads, layer_idx=index)
            narrow(layer.mlp.Wi, outputs=2 * neurons)
            narrow(layer.mlp.Wo, inputs=neurons)
        self.post_init()

    @classmethod
    def is_custom_code(cls):
        """`False`, so that modules which initialize their children do so, as in the stock class."""
        return False


class PrunedModernBertHead:
    """Replaces the encoder of a stock class with a head by the narrower one; placed before it in the bases."""

    config_class = PrunedModernBertConfig
    accepts_loss_kwargs = False  # the stock loss is a mean: the Trainer has to divide it by the accumulation

    def __init__(self, config):
        checkpointing = getattr(config, "gradient_checkpointing", False)
        super().__init__(config)
        if checkpointing:  # the encoder that is replaced has taken it out of the configuration
            config.gradient_checkpointing = True
        self.model = PrunedModernBertModel(config)
        self.post_init()

    @classmethod
    def is_custom_code(cls):
        """`False`, so that modules which initialize their children do so, as in the stock class."""
        return False


class PrunedModernBertForMaskedLM(PrunedModernBertHead, ModernBertForMaskedLM):
    """With a masked-language-modelling head."""

    _auto_class = "AutoModelForMaskedLM"


class PrunedModernBertForMultipleChoice(PrunedModernBertHead, ModernBertForMultipleChoice):
    """With a multiple-choice head."""

    _auto_class = "AutoModelForMultipleChoice"


class PrunedModernBertForQuestionAnswering(PrunedModernBertHead, ModernBertForQuestionAnswering):
    """With a span-extraction head for question answering."""

    _auto_class = "AutoModelForQuestionAnswering"


class PrunedModernBertForSequenceClassification(PrunedModernBertHead, ModernBertForSequenceClassification):
    """With a sequence classification head."""

    _auto_class = "AutoModelForSequenceClassification"


class PrunedModernBertForTokenClassification(PrunedModernBertHead, ModernBertForTokenClassification):
    """With a token classification head."""

    _auto_class = "AutoModelForTokenClassification"


__all__ = [
    "PrunedModernBertForMaskedLM",
    "PrunedModernBertForMultipleChoice",
    "PrunedModernBertForQuestionAnswering",
    "PrunedModernBertForSequenceClassification",
    "PrunedModernBertForTokenClassification",
    "PrunedModernBertModel",
]
