"""Training models: stock architectures with methods; each exports to its stock class."""

from . import auto as auto
from .bert import EffptBertForMaskedLM as EffptBertForMaskedLM
from .bert import EffptBertForQuestionAnswering as EffptBertForQuestionAnswering
from .bert import EffptBertForSequenceClassification as EffptBertForSequenceClassification
from .bert import EffptBertForTokenClassification as EffptBertForTokenClassification
from .bert import EffptBertModel as EffptBertModel
from .configuration_effpt import EffptBertConfig as EffptBertConfig
from .configuration_electra import EffptElectraConfig as EffptElectraConfig
from .configuration_electra import McBertConfig as McBertConfig
from .electra import EffptElectraForSequenceClassification as EffptElectraForSequenceClassification
from .electra import EffptElectraModel as EffptElectraModel
from .electra import ElectraForJointPreTraining as ElectraForJointPreTraining
from .families import *  # noqa: F403
from .mcbert import McBertForPreTraining as McBertForPreTraining
from .mcbert import McBertModel as McBertModel
from .replaced_mlm import ElectraForReplacedMaskedLM as ElectraForReplacedMaskedLM
