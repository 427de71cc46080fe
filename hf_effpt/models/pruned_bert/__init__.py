"""A BERT with narrower layers that brings its own code: what a model exports to whose heads and neurons were cut."""

from .configuration_pruned_bert import HEADS, PrunedBertConfig
from .modeling_pruned_bert import (
    PrunedBertForMaskedLM,
    PrunedBertForMultipleChoice,
    PrunedBertForQuestionAnswering,
    PrunedBertForSequenceClassification,
    PrunedBertForTokenClassification,
    PrunedBertModel,
)

__all__ = [
    "HEADS",
    "PrunedBertConfig",
    "PrunedBertForMaskedLM",
    "PrunedBertForMultipleChoice",
    "PrunedBertForQuestionAnswering",
    "PrunedBertForSequenceClassification",
    "PrunedBertForTokenClassification",
    "PrunedBertModel",
]
