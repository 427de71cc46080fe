"""ModernBERT for efficient pre-training: the stock modules, and a head that runs at masked positions only."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import (
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)

from .base import EffptMixin
from .configuration_effpt import EffptModernBertConfig
from .masked_lm import MaskedLMMixin
from .pruned_modernbert import (
    PrunedModernBertForMaskedLM,
    PrunedModernBertForQuestionAnswering,
    PrunedModernBertForSequenceClassification,
    PrunedModernBertForTokenClassification,
    PrunedModernBertModel,
)


class EffptModernBertModel(EffptMixin, ModernBertModel):
    """The encoder alone."""

    config_class = EffptModernBertConfig
    stock_class = ModernBertModel
    narrow_class = PrunedModernBertModel


class EffptModernBertForMaskedLM(MaskedLMMixin, ModernBertForMaskedLM):
    """ModernBERT with a masked-language-modelling head that computes logits at masked positions only."""

    config_class = EffptModernBertConfig
    stock_class = ModernBertForMaskedLM
    narrow_class = PrunedModernBertForMaskedLM

    def _head(self) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
        return self.head, self.decoder


class EffptModernBertForSequenceClassification(EffptMixin, ModernBertForSequenceClassification):
    """ModernBERT with a sequence classification head."""

    config_class = EffptModernBertConfig
    stock_class = ModernBertForSequenceClassification
    narrow_class = PrunedModernBertForSequenceClassification


class EffptModernBertForTokenClassification(EffptMixin, ModernBertForTokenClassification):
    """ModernBERT with a token classification head."""

    config_class = EffptModernBertConfig
    stock_class = ModernBertForTokenClassification
    narrow_class = PrunedModernBertForTokenClassification


class EffptModernBertForQuestionAnswering(EffptMixin, ModernBertForQuestionAnswering):
    """ModernBERT with a span-extraction head for question answering."""

    config_class = EffptModernBertConfig
    stock_class = ModernBertForQuestionAnswering
    narrow_class = PrunedModernBertForQuestionAnswering
