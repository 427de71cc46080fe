"""The training models: stock architectures with methods, each of which exports to its stock class."""

from . import auto
from .bert import (
    EffptBertForMaskedLM,
    EffptBertForQuestionAnswering,
    EffptBertForSequenceClassification,
    EffptBertForTokenClassification,
    EffptBertModel,
)
from .configuration_effpt import EffptBertConfig
from .named import (
    LayerDropBertConfig,
    LayerDropBertForMaskedLM,
    LayerDropBertForSequenceClassification,
    LayerDropBertModel,
    StackableBertConfig,
    StackableBertForMaskedLM,
    StackableBertForSequenceClassification,
    StackableBertModel,
)

__all__ = [
    "EffptBertConfig",
    "EffptBertForMaskedLM",
    "EffptBertForQuestionAnswering",
    "EffptBertForSequenceClassification",
    "EffptBertForTokenClassification",
    "EffptBertModel",
    "LayerDropBertConfig",
    "LayerDropBertForMaskedLM",
    "LayerDropBertForSequenceClassification",
    "LayerDropBertModel",
    "StackableBertConfig",
    "StackableBertForMaskedLM",
    "StackableBertForSequenceClassification",
    "StackableBertModel",
    "auto",
]
