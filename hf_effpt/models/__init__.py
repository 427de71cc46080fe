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
from .configuration_electra import EffptElectraConfig, McBertConfig
from .electra import EffptElectraForSequenceClassification, EffptElectraModel, ElectraForJointPreTraining
from .mcbert import McBertForPreTraining, McBertModel
from .named import (
    LayerDropBertConfig,
    LayerDropBertForMaskedLM,
    LayerDropBertForSequenceClassification,
    LayerDropBertModel,
    LayerSkipBertConfig,
    LayerSkipBertForMaskedLM,
    LayerSkipBertForSequenceClassification,
    LayerSkipBertModel,
    StackableBertConfig,
    StackableBertForMaskedLM,
    StackableBertForSequenceClassification,
    StackableBertModel,
    TNFBertConfig,
    TNFBertForMaskedLM,
    TNFBertForSequenceClassification,
    TNFBertModel,
)
from .replaced_mlm import ElectraForReplacedMaskedLM

__all__ = [
    "EffptBertConfig",
    "EffptBertForMaskedLM",
    "EffptBertForQuestionAnswering",
    "EffptBertForSequenceClassification",
    "EffptBertForTokenClassification",
    "EffptBertModel",
    "EffptElectraConfig",
    "EffptElectraForSequenceClassification",
    "EffptElectraModel",
    "ElectraForJointPreTraining",
    "ElectraForReplacedMaskedLM",
    "LayerDropBertConfig",
    "LayerDropBertForMaskedLM",
    "LayerDropBertForSequenceClassification",
    "LayerDropBertModel",
    "LayerSkipBertConfig",
    "LayerSkipBertForMaskedLM",
    "LayerSkipBertForSequenceClassification",
    "LayerSkipBertModel",
    "McBertConfig",
    "McBertForPreTraining",
    "McBertModel",
    "StackableBertConfig",
    "StackableBertForMaskedLM",
    "StackableBertForSequenceClassification",
    "StackableBertModel",
    "TNFBertConfig",
    "TNFBertForMaskedLM",
    "TNFBertForSequenceClassification",
    "TNFBertModel",
    "auto",
]
