"""Training models: stock architectures with methods; each exports to its stock class.

base                      mixins of training models: methods, export, the forward on masked text
  resizing                what methods hold of tables that change their size
configuration_effpt       configurations of BERT and ModernBERT with the ledger of methods
encoder_inputs            inputs of the encoder, which keep the documents of a row apart
  document_blocks         attention within documents, block by block
masked_lm                 masked language modelling, with a head that runs at masked positions only; next tokens
next_token_loss           the loss at every token, without the logits of all at once
  sparse_layer            layer with outputs at some positions only
bert                      BERT
modernbert                ModernBERT
kin                       RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT
from_checkpoint           training models that go on from a published checkpoint
  checkpoint_weights      its weights, before and while they are loaded
  kept_heads              its pooler and heads, kept for the export
  families                BERT classes with one method switched on
configuration_electra     configurations of models with a generator
  generator_settings      their settings that all of them have
generator                 generator that replaces tokens
  sampling                exact sampling from a softmax
electra                   ELECTRA, detection of replaced tokens
  joining                 its training from a stock discriminator and generator
replaced_mlm              prediction of replaced tokens
mcbert                    MC-BERT, choice among candidates
  candidates              logits of candidates in bounded memory
modern_electra            ModernBERT with a generator, for all of these objectives
quiet                     silence of transformers while models are saved
build                     classes of each backbone and objective
auto                      registration with the Auto classes
pruned_bert, pruned_modernbert  exports with narrower layers, with their code
"""

from . import auto as auto
from .bert import EffptBertForMaskedLM as EffptBertForMaskedLM
from .bert import EffptBertForQuestionAnswering as EffptBertForQuestionAnswering
from .bert import EffptBertForSequenceClassification as EffptBertForSequenceClassification
from .bert import EffptBertForTokenClassification as EffptBertForTokenClassification
from .bert import EffptBertModel as EffptBertModel
from .configuration_effpt import EffptBertConfig as EffptBertConfig
from .configuration_effpt import EffptModernBertConfig as EffptModernBertConfig
from .configuration_electra import EffptElectraConfig as EffptElectraConfig
from .configuration_electra import McBertConfig as McBertConfig
from .configuration_electra import ModernElectraConfig as ModernElectraConfig
from .configuration_electra import ModernMcBertConfig as ModernMcBertConfig
from .electra import EffptElectraForSequenceClassification as EffptElectraForSequenceClassification
from .electra import EffptElectraModel as EffptElectraModel
from .electra import ElectraForJointPreTraining as ElectraForJointPreTraining
from .families import *  # noqa: F403
from .kin import *  # noqa: F403
from .mcbert import McBertForPreTraining as McBertForPreTraining
from .mcbert import McBertModel as McBertModel
from .modern_electra import ModernElectraForJointPreTraining as ModernElectraForJointPreTraining
from .modern_electra import ModernElectraForReplacedMaskedLM as ModernElectraForReplacedMaskedLM
from .modern_electra import ModernElectraForSequenceClassification as ModernElectraForSequenceClassification
from .modern_electra import ModernElectraModel as ModernElectraModel
from .modern_electra import ModernMcBertForPreTraining as ModernMcBertForPreTraining
from .modern_electra import ModernMcBertModel as ModernMcBertModel
from .modernbert import EffptModernBertForMaskedLM as EffptModernBertForMaskedLM
from .modernbert import EffptModernBertForQuestionAnswering as EffptModernBertForQuestionAnswering
from .modernbert import EffptModernBertForSequenceClassification as EffptModernBertForSequenceClassification
from .modernbert import EffptModernBertForTokenClassification as EffptModernBertForTokenClassification
from .modernbert import EffptModernBertModel as EffptModernBertModel
from .replaced_mlm import ElectraForReplacedMaskedLM as ElectraForReplacedMaskedLM
