"""BERT for efficient pre-training: the stock modules, and a head that runs at masked positions only."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from transformers.modeling_outputs import MaskedLMOutput

from hf_effpt.core.depth import first_layers, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.token_losses import Reduction, observed_loss

from .base import EffptMixin, encoder_inputs, isolate_documents
from .configuration_effpt import EffptBertConfig
from .pruned_bert import (
    PrunedBertForMaskedLM,
    PrunedBertForQuestionAnswering,
    PrunedBertForSequenceClassification,
    PrunedBertForTokenClassification,
    PrunedBertModel,
)
from .sparse_layer import encode_at, positions_of


class EffptBertModel(EffptMixin, BertModel):
    """The encoder alone."""

    config_class = EffptBertConfig
    stock_class = BertModel
    narrow_class = PrunedBertModel


class EffptBertForMaskedLM(EffptMixin, BertForMaskedLM):
    """BERT with a masked-language-modelling head that computes logits at masked positions only.

    B batch, L row length, D hidden size, M masked positions per row, N masked positions in all, V vocabulary.
    """

    config_class = EffptBertConfig
    stock_class = BertForMaskedLM
    narrow_class = PrunedBertForMaskedLM
    pretrains = True
    accepts_loss_kwargs = True  # the loss is divided by `num_items_in_batch`, the number of the whole step

    def __init__(self, config: EffptBertConfig) -> None:
        super().__init__(config)
        stack_of(self.bert)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        loss_weight_inputs: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Runs the stock forward without `labels`; with them, computes the loss and returns no logits.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as in `BertForMaskedLM`.
            labels (`Tensor` of shape `(batch_size, sequence_length)`): original ids at masked positions, -100
                elsewhere.
            masked_positions (`Tensor` of shape `(batch_size, masked)`, *optional*): positions of the labels. They
                keep shapes static and avoid a wait for the device; entries whose label is -100 are ignored.
            document_ids (`Tensor` of shape `(batch_size, sequence_length)`, *optional*): the document of each token
                within its row, from 1, and 0 for padding; a document attends to itself only, with positions from 0.
            num_items_in_batch (`Tensor` or `int`, *optional*): masked tokens of the whole optimizer step; the loss is
                the sum over this batch divided by it. By default the mean over this batch.
            loss_weight_inputs (`Tensor` of shape `(batch_size,)` or `(batch_size, masked)`, *optional*): passed to
                methods that weight the losses of tokens.
        """
        if document_ids is not None:
            attention_mask, position_ids = isolate_documents(
                document_ids, self.config._attn_implementation, self.dtype
            )
        return_dict = kwargs.pop("return_dict", None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        given = {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        loss = logits = None
        if labels is not None and masked_positions is not None:
            outputs, hidden_BMD = encode_at(self.bert, masked_positions, input_ids, **given)
            hidden_ND, labels_N = hidden_BMD.flatten(0, 1), labels.gather(1, masked_positions).flatten()
        else:
            outputs = self.bert(input_ids, return_dict=True, **given)
            hidden_BLD = outputs.last_hidden_state
            if labels is None:
                logits = self.cls(hidden_BLD)
            else:
                hidden_ND, labels_N = hidden_BLD[labels != -100], labels[labels != -100]
        if labels is not None:
            logits_NV = self.cls(hidden_ND)
            packed = masked_positions is None
            asked = (labels if packed else labels_N.view_as(masked_positions)) != -100
            loss_of = partial(token_loss, logits_NV, labels_N)
            total = observed_loss(self.bert, loss_of, asked, loss_weight_inputs, packed)
            loss = total / (label_count(labels_N) if num_items_in_batch is None else num_items_in_batch)
        output = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return output if return_dict else output.to_tuple()

    def head_inputs(
        self, batch: Mapping[str, Tensor], layers: int | None = None, of_generator: bool = False
    ) -> HeadInputs:
        """The encoder's outputs at the masked positions of a batch, and the head above them.

        Args:
            batch (`Mapping[str, Tensor]`): arguments of `forward`, with `labels`.
            layers (`int`, *optional*): number of layers to run, from the first; by default all.
            of_generator (`bool`, *optional*, defaults to `False`): must be `False`: the model has no generator.

        Raises:
            EffptError: if `of_generator`.
        """
        if of_generator:
            raise EffptError(
                f"`{type(self).__name__}` has no generator to answer in its place; use a model with one, such as "
                "`model.objective: electra`, or let it answer itself (`scorer: full`)."
            )
        labels, positions = batch["labels"], batch.get("masked_positions")
        if positions is None:
            positions = positions_of(labels)
        with first_layers(self.bert, layers):
            _, hidden_BMD = encode_at(self.bert, positions, **encoder_inputs(self, batch))
        return HeadInputs(hidden_BMD, labels.gather(1, positions), self._answer)

    def _answer(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the decoder, and its logits."""
        features = self.cls.predictions.transform(hidden)
        return features, self.cls.predictions.decoder(features)


def masked_loss(logits_NV: Tensor, labels_N: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy in fp32, summed over labels other than -100 and divided by `num_items` or their number."""
    return token_loss(logits_NV, labels_N) / (label_count(labels_N) if num_items is None else num_items)


def token_loss(logits_NV: Tensor, labels_N: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Cross-entropy in fp32, summed or per token; zero where the label is -100."""
    return nn.functional.cross_entropy(logits_NV.float(), labels_N, reduction=reduction, ignore_index=-100)


def label_count(labels_N: Tensor) -> Tensor:
    """The number of labels other than -100, at least 1."""
    return (labels_N != -100).sum().clamp(min=1)


class EffptBertForSequenceClassification(EffptMixin, BertForSequenceClassification):
    """BERT with a sequence classification head."""

    config_class = EffptBertConfig
    stock_class = BertForSequenceClassification
    narrow_class = PrunedBertForSequenceClassification
    accepts_loss_kwargs = False  # the stock loss is a micro-batch mean, which the Trainer divides by the accumulation


class EffptBertForTokenClassification(EffptMixin, BertForTokenClassification):
    """BERT with a token classification head."""

    config_class = EffptBertConfig
    stock_class = BertForTokenClassification
    narrow_class = PrunedBertForTokenClassification
    accepts_loss_kwargs = False


class EffptBertForQuestionAnswering(EffptMixin, BertForQuestionAnswering):
    """BERT with a span-extraction head for question answering."""

    config_class = EffptBertConfig
    stock_class = BertForQuestionAnswering
    narrow_class = PrunedBertForQuestionAnswering
    accepts_loss_kwargs = False
