"""Masked language modelling with a head that runs at masked positions only; or next tokens, at all of them.

B batch, L row length, D hidden size, M masked positions per row, N masked positions in all, V vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from hf_effpt.core.depth import first_layers, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.token_losses import Reduction, observed_loss

from .base import PretrainingMixin
from .encoder_inputs import encoder_inputs
from .next_token_loss import next_token_loss
from .sparse_layer import encode_at, labels_at, positions_of


class MaskedLMMixin(PretrainingMixin):
    """A [`PretrainingMixin`] for stock masked language models; each says in `_head` what its head is.

    With `causal=` a tensor of shape `(batch_size,)`, whatever its values, tokens attend to no later one, and the
    labels, at any position, are next tokens.
    """

    label_smoothing = 0.0  # of the loss in training: the weight of the mean over all tokens, as in the stock Trainer

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        stack_of(self.backbone)

    def _learn(self, batch: Mapping[str, Any]) -> MaskedLMOutput:
        if batch.get("causal") is not None:
            return self._learn_next(batch)
        labels_BL, positions_BM, items = batch["labels"], batch["masked_positions"], batch["num_items_in_batch"]
        if positions_BM is None:
            positions_BM = positions_of(labels_BL)
        encoder, (transform, decoder) = self.backbone, self._head()
        outputs, hidden_BMD = encode_at(encoder, positions_BM, **encoder_inputs(self, batch))
        labels_BM = labels_at(labels_BL, positions_BM)
        hidden_ND, labels_N = hidden_BMD.flatten(0, 1), labels_BM.flatten()
        smoothing = self.label_smoothing if self.training else 0.0
        loss_of = partial(token_loss, decoder(transform(hidden_ND)), labels_N, label_smoothing=smoothing)
        total = observed_loss(encoder, loss_of, labels_BM != -100, batch["loss_weight_inputs"])
        loss = total / (label_count(labels_N) if items is None else items)
        return MaskedLMOutput(loss=loss, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def _learn_next(self, batch: Mapping[str, Any]) -> MaskedLMOutput:
        labels_BL, items, (transform, decoder) = batch["labels"], batch["num_items_in_batch"], self._head()
        outputs = self.backbone(return_dict=True, **encoder_inputs(self, batch))
        features_ND, labels_N = transform(outputs.last_hidden_state).flatten(0, 1), labels_BL.flatten()
        smoothing = self.label_smoothing if self.training else 0.0
        loss_of = partial(
            next_token_loss, features_ND, decoder.weight, decoder.bias, labels_N, label_smoothing=smoothing
        )
        total = observed_loss(self.backbone, loss_of, labels_BL != -100, batch["loss_weight_inputs"])
        loss = total / (label_count(labels_N) if items is None else items)
        return MaskedLMOutput(loss=loss, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def head_inputs(
        self, batch: Mapping[str, Tensor], layers: int | None = None, of_generator: bool = False
    ) -> HeadInputs:
        if of_generator:
            raise EffptError(
                f"`{type(self).__name__}` has no generator to answer in its place; use a model with one, such as "
                "`model.objective: electra`, or let it answer itself (`scorer: full`)."
            )
        labels, positions = batch["labels"], batch.get("masked_positions")
        if positions is None:
            positions = positions_of(labels)
        with first_layers(self.backbone, layers):
            _, hidden_BMD = encode_at(self.backbone, positions, **encoder_inputs(self, batch))
        return HeadInputs(hidden_BMD, labels_at(labels, positions), self._answer)

    def cost_signature(self) -> str:
        return "smoothed" if self.label_smoothing else ""

    def _answer(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the decoder, and its logits."""
        transform, decoder = self._head()
        features = transform(hidden)
        return features, decoder(features)

    def _head(self) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
        """The map from hidden states to the input of the decoder, and the decoder."""
        raise NotImplementedError


def token_loss(
    logits_NV: Tensor, labels_N: Tensor, reduction: Reduction = "sum", label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in fp32, summed or per token; zero where the label is -100.

    With `label_smoothing` e it is (1 - e) times that of the label plus e times the mean over all tokens.
    """
    return nn.functional.cross_entropy(
        logits_NV.float(), labels_N, reduction=reduction, ignore_index=-100, label_smoothing=label_smoothing
    )


def label_count(labels_N: Tensor) -> Tensor:
    """The number of labels other than -100, at least 1."""
    return (labels_N != -100).sum().clamp(min=1)
