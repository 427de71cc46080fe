"""BERT for efficient pre-training: the stock modules, and a head that runs at masked positions only."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from .base import EffptMixin
from .configuration_effpt import EffptBertConfig
from .masked_lm import MaskedLMMixin
from .pruned_bert import (
    PrunedBertForMaskedLM,
    PrunedBertForQuestionAnswering,
    PrunedBertForSequenceClassification,
    PrunedBertForTokenClassification,
    PrunedBertModel,
)


class EffptBertModel(EffptMixin, BertModel):
    """The encoder alone."""

    config_class = EffptBertConfig
    stock_class = BertModel
    narrow_class = PrunedBertModel


class EffptBertForMaskedLM(MaskedLMMixin, BertForMaskedLM):
    """BERT with a masked-language-modelling head that computes logits at masked positions only."""

    config_class = EffptBertConfig
    stock_class = BertForMaskedLM
    narrow_class = PrunedBertForMaskedLM

    def _head(self) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
        return self.cls.predictions.transform, self.cls.predictions.decoder


class EffptBertForSequenceClassification(EffptMixin, BertForSequenceClassification):
    """BERT with a sequence classification head."""

    config_class = EffptBertConfig
    stock_class = BertForSequenceClassification
    narrow_class = PrunedBertForSequenceClassification


class EffptBertForTokenClassification(EffptMixin, BertForTokenClassification):
    """BERT with a token classification head."""

    config_class = EffptBertConfig
    stock_class = BertForTokenClassification
    narrow_class = PrunedBertForTokenClassification


class EffptBertForQuestionAnswering(EffptMixin, BertForQuestionAnswering):
    """BERT with a span-extraction head for question answering."""

    config_class = EffptBertConfig
    stock_class = BertForQuestionAnswering
    narrow_class = PrunedBertForQuestionAnswering
