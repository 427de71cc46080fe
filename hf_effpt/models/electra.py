"""ELECTRA: a discriminator that detects the tokens replaced by a generator (Clark et al., 2020).

B batch, L row length, M masked positions per row, D hidden size.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    ElectraModel,
)
from transformers.models.electra.modeling_electra import ElectraDiscriminatorPredictions

from hf_effpt.core.anatomy import activation_of
from hf_effpt.core.depth import first_layers
from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.token_losses import Reduction

from .base import EffptMixin
from .configuration_electra import EffptElectraConfig
from .generator import Batch, JointOutput, WithGenerator
from .joining import joint_config, load_parts
from .sparse_layer import encode_at


class WithoutGenerator(EffptMixin):
    """An [`EffptMixin`] for classes that have no generator, though their configurations may ask for one."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        if config.disentangled:
            raise EffptError(
                f"`{type(self).__name__}` has no generator, to whose word embeddings `embedding_sharing` "
                "`disentangled` adds; export the checkpoint first (`effpt export`), and load the stock model."
            )
        super().__init__(config, *args, **kwargs)


class EffptElectraModel(WithoutGenerator, ElectraModel):
    """The encoder alone."""

    config_class = EffptElectraConfig
    stock_class = ElectraModel


class EffptElectraForSequenceClassification(WithoutGenerator, ElectraForSequenceClassification):
    """ELECTRA with a sequence classification head."""

    config_class = EffptElectraConfig
    stock_class = ElectraForSequenceClassification


class DiscriminatorMixin(WithGenerator):
    """A [`WithGenerator`] for the objectives `electra` and `electra_15`; the main model is a discriminator.

    It has `discriminator_predictions`, as in the stock `ElectraForPreTraining`.
    """

    main_loss_name = "discriminator_loss"
    predicting: ClassVar[str]  # the class for objectives with a head over the vocabulary
    discriminator_predictions: Any

    def __init__(self, config: Any) -> None:
        if config.objective not in ("electra", "electra_15"):
            raise EffptError(
                f"`{type(self).__name__}` has a discriminator and no head over the vocabulary, which the objective "
                f"`{config.objective}` needs; use `{self.predicting}`."
            )
        super().__init__(config)

    def own_initializers(self) -> dict[str, Callable[[Tensor], Any]]:
        last = "discriminator_predictions.dense_prediction.weight"
        return {last: nn.init.xavier_uniform_, **super().own_initializers()}  # TensorFlow's default, too

    def _learn_jointly(self, batch: Batch) -> JointOutput:
        _, logits_NV, generator_loss = self._generate(batch)
        corrupted_BL, replaced_BL = self._insert(batch, self._sample(batch, logits_NV))
        with self.own_stream():
            hidden_BLD = self.backbone(corrupted_BL, return_dict=True, **batch.inputs).last_hidden_state
            logits_BL = self.discriminator_predictions(hidden_BLD)
        wanted_BL, per = batch.real_BL, batch.items[1]
        if self._judges_chosen:
            wanted_BL = torch.zeros_like(wanted_BL).scatter(1, batch.positions_BM, batch.chosen_BM)
            per = batch.items[0]
        loss = self._main_loss(batch, partial(replaced_loss, logits_BL, replaced_BL, wanted_BL), wanted_BL)
        sums = self._generator_sums(batch, logits_NV, generator_loss, replaced_BL) | {"main_loss": loss}
        return self._joined(
            batch, generator_loss, loss, per,
            logits=logits_BL, corrupted_ids=corrupted_BL, replaced=replaced_BL, sums=sums,
        )  # fmt: skip

    @property
    def _judges_chosen(self) -> bool:
        """`True` if the discriminator classifies masked positions only."""
        return self.config.objective == "electra_15"

    def _main_inputs(self, batch: Batch, layers: int | None) -> HeadInputs:
        """The discriminator at all positions, or at masked ones with `electra_15`; labels are 1 at replaced tokens."""
        corrupted_BL, replaced_BL = self._corrupted(batch)
        wanted = batch.real_BL
        with first_layers(self.backbone, layers):
            if self._judges_chosen:
                _, hidden = encode_at(self.backbone, batch.positions_BM, corrupted_BL, **batch.inputs)
                wanted, replaced_BL = batch.chosen_BM, replaced_BL.gather(1, batch.positions_BM)
            else:
                hidden = self.backbone(corrupted_BL, return_dict=True, **batch.inputs).last_hidden_state
        return HeadInputs(hidden, torch.where(wanted, replaced_BL.long(), -100), self._judge)

    def _judge(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the last layer of the discriminator's head, and its logit."""
        head = self.discriminator_predictions
        features = head.activation(head.dense(hidden))
        return features, head.dense_prediction(features)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        judged = max(1.0, sums["masked" if self._judges_chosen else "tokens"])
        replaced = sums["replaced"] / judged
        return self.generator_metrics(sums) | {
            self.main_loss_name: sums["main_loss"] / judged,
            "replaced_rate": replaced,
            "floor": prior_entropy(replaced),
        }


class ElectraForJointPreTraining(DiscriminatorMixin, ElectraForPreTraining):
    """Generator and discriminator in one model, for the objectives `electra` and `electra_15`.

    The discriminator's parameters have their stock names; those of the generator begin with `generator.`.
    """

    config_class = EffptElectraConfig
    stock_class = ElectraForPreTraining
    generator_class = ElectraForMaskedLM
    predicting = "ElectraForReplacedMaskedLM"

    @classmethod
    def from_parts(
        cls, discriminator: ElectraForPreTraining, generator: ElectraForMaskedLM, **settings: Any
    ) -> "ElectraForJointPreTraining":
        """Joins a stock discriminator and a stock generator, such as `google/electra-small-…`, for more training.

        Both compute what they did. Methods adopt them as trained weights.

        Args:
            discriminator (`ElectraForPreTraining`): the main model.
            generator (`ElectraForMaskedLM`): the generator, with the discriminator's embeddings and their LayerNorm;
                only its word embeddings may be its own, with `embedding_sharing="disentangled"`.
            **settings: arguments of [`EffptElectraConfig`], such as `methods`.

        Raises:
            EffptError: for models of other classes or with further parameters, if the two do not share their
                embeddings, or if the generator is wider than the discriminator.
        """
        joint = cls(joint_config(discriminator, generator, settings))
        load_parts(joint, discriminator, generator)
        return joint


def detector(config: Any) -> ElectraDiscriminatorPredictions:
    """A new head that maps each hidden state to the logit of a replaced token, as in a stock discriminator."""
    sizes = {"hidden_size": config.hidden_size, "hidden_act": activation_of(config)}
    return ElectraDiscriminatorPredictions(ElectraConfig(**sizes))


def replaced_loss(logits_BL: Tensor, replaced_BL: Tensor, wanted_BL: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Binary cross-entropy of replaced-token detection in fp32 at the wanted tokens, summed or per token."""
    return nn.functional.binary_cross_entropy_with_logits(
        logits_BL.float(), replaced_BL.float(), weight=wanted_BL.float(), reduction=reduction
    )


def prior_entropy(share: float) -> float:
    """Loss in nats of a discriminator that knows only the share of replaced tokens: the entropy of that share."""
    if not 0 < share < 1:
        return 0.0
    return -share * math.log(share) - (1 - share) * math.log(1 - share)
