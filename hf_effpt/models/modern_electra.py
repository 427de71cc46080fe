"""ModernBERT trained with a generator: as a discriminator, to predict replaced tokens, or to choose among candidates.

The generator is a ModernBERT of fewer layers, with the table and the first norm of the main model.
"""

from typing import Any

import torch
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
)
from transformers.models.electra.modeling_electra import ElectraForPreTrainingOutput
from transformers.models.modernbert.modeling_modernbert import ModernBertPreTrainedModel
from transformers.utils import can_return_tuple

from .base import EffptMixin
from .configuration_electra import ModernElectraConfig, ModernMcBertConfig
from .electra import DiscriminatorMixin, WithoutGenerator, detector
from .mcbert import McBertMixin
from .pruned_modernbert import (
    PrunedModernBertForMaskedLM,
    PrunedModernBertForSequenceClassification,
    PrunedModernBertModel,
)
from .replaced_mlm import ReplacedMaskedLMMixin


class ModernElectraModel(WithoutGenerator, ModernBertModel):
    """The encoder alone."""

    config_class = ModernElectraConfig
    stock_class = ModernBertModel
    narrow_class = PrunedModernBertModel


class ModernElectraForSequenceClassification(WithoutGenerator, ModernBertForSequenceClassification):
    """ModernBERT, pre-trained with a generator, with a sequence classification head."""

    config_class = ModernElectraConfig
    stock_class = ModernBertForSequenceClassification
    narrow_class = PrunedModernBertForSequenceClassification


class ModernBertDiscriminator(ModernBertPreTrainedModel):
    """ModernBERT with the head of an ELECTRA, a logit a token that tells replaced ones from original ones."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__(config)
        self.model = ModernBertModel(config)
        self.discriminator_predictions = detector(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ElectraForPreTrainingOutput:
        """Logits of shape `(batch_size, sequence_length)`; arguments are those of a `ModernBertModel`."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds,
            **kwargs,
        )  # fmt: skip
        logits: Any = self.discriminator_predictions(outputs.last_hidden_state)
        return ElectraForPreTrainingOutput(
            logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ModernElectraForJointPreTraining(DiscriminatorMixin, ModernBertDiscriminator):
    """Generator and discriminator in one model, for the objectives `electra` and `electra_15`.

    The generator's parameters begin with `generator.`. It exports to the encoder of the discriminator, a
    `ModernBertModel`, since no stock class has its head.
    """

    config_class = ModernElectraConfig
    stock_class = ModernBertModel
    narrow_class = PrunedModernBertModel
    generator_class = ModernBertForMaskedLM
    predicting = "ModernElectraForReplacedMaskedLM"
    training_only = ("generator.", "discriminator_predictions.")

    def stock_name(self, name: str) -> str | None:
        kept = super().stock_name(name)
        return None if kept is None else kept.removeprefix("model.")


class ModernElectraForReplacedMaskedLM(ReplacedMaskedLMMixin, ModernBertForMaskedLM):
    """Two ModernBERTs, of which the main one predicts tokens: `replace_mlm` or `all_tokens_mlm`."""

    config_class = ModernElectraConfig
    stock_class = ModernBertForMaskedLM
    narrow_class = PrunedModernBertForMaskedLM
    generator_class = ModernBertForMaskedLM
    detecting = "ModernElectraForJointPreTraining"


class ModernMcBertModel(EffptMixin, ModernBertModel):
    """The encoder alone."""

    config_class = ModernMcBertConfig
    stock_class = ModernBertModel
    narrow_class = PrunedModernBertModel


class ModernMcBertForPreTraining(McBertMixin, ModernBertForMaskedLM):
    """MC-BERT of ModernBERT's shape with its meta controller, `generator`; exports to a `ModernBertForMaskedLM`."""

    config_class = ModernMcBertConfig
    stock_class = ModernBertForMaskedLM
    narrow_class = PrunedModernBertForMaskedLM
    generator_class = ModernBertForMaskedLM
    decoder_name = "decoder"
