"""Objectives between masked language modelling and ELECTRA that predict tokens (Clark et al., 2020, table 5).

B batch, L row length, M masked positions per row, N positions in all, D hidden size.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import ElectraForMaskedLM

from hf_effpt.core.anatomy import word_head_of
from hf_effpt.core.depth import first_layers
from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.token_losses import Reduction

from .candidates import log_probabilities
from .configuration_electra import EffptElectraConfig
from .electra import prior_entropy
from .generator import Batch, JointOutput, WithGenerator, predict_words
from .masked_lm import token_loss
from .sparse_layer import encode_at

OBJECTIVES = ("replace_mlm", "all_tokens_mlm")


class ReplacedMaskedLMMixin(WithGenerator):
    """A [`WithGenerator`] that predicts original tokens from a generator's output, for stock masked language models.

    It predicts at masked positions (`replace_mlm`) or at all of them (`all_tokens_mlm`), by the configuration's
    `objective`.
    """

    main_loss_name = "prediction_loss"
    training_only = ("generator.", "copy_head.")
    detecting: ClassVar[str]  # the class for objectives with a discriminator

    def __init__(self, config: Any) -> None:
        if config.objective not in OBJECTIVES:
            raise EffptError(
                f"`{type(self).__name__}` predicts tokens, which the objective `{config.objective}` does not; use "
                f"`{self.detecting}`, or one of {', '.join(OBJECTIVES)}."
            )
        super().__init__(config)

    def _add_heads(self, config: Any) -> None:
        if config.objective == "all_tokens_mlm":
            self.copy_head = nn.Linear(config.hidden_size, 1)

    def _learn_jointly(self, batch: Batch) -> JointOutput:
        _, logits_NV, generator_loss = self._generate(batch)
        corrupted_BL, replaced_BL = self._insert(batch, self._sample(batch, logits_NV))
        everywhere = self.config.objective == "all_tokens_mlm"
        with self.own_stream():
            loss = (self._copy_or_predict if everywhere else self._predict)(batch, corrupted_BL)
        sums = self._generator_sums(batch, logits_NV, generator_loss, replaced_BL) | {"main_loss": loss}
        return self._joined(
            batch, generator_loss, loss, batch.items[int(everywhere)],
            corrupted_ids=corrupted_BL, replaced=replaced_BL, sums=sums,
        )  # fmt: skip

    def _predict(self, batch: Batch, corrupted_BL: Tensor) -> Tensor:
        """The summed loss at masked positions; if possible, the last layer computes no other outputs."""
        _, hidden_BMD = encode_at(self.backbone, batch.positions_BM, corrupted_BL, **batch.inputs)
        _, logits_NV = predict_words(self, hidden_BMD.flatten(0, 1))
        return self._main_loss(batch, partial(token_loss, logits_NV, batch.labels_BM.flatten()), batch.chosen_BM)

    def _copy_or_predict(self, batch: Batch, corrupted_BL: Tensor) -> Tensor:
        """The summed loss at every token: a learned probability copies the input, else the token is predicted."""
        hidden_BLD = self.backbone(corrupted_BL, return_dict=True, **batch.inputs).last_hidden_state
        transform, decoder = word_head_of(self)
        wanted_N, output_ND = batch.original_BL.flatten(), transform(hidden_BLD).flatten(0, 1)
        predicted_N = log_probabilities(output_ND, decoder.weight, decoder.bias, wanted_N)
        copy_N = self.copy_head(hidden_BLD).float().flatten()
        logsigmoid = nn.functional.logsigmoid
        predicted_N = logsigmoid(-copy_N) + predicted_N
        # A copy is correct unless the token was replaced.
        log_N = (logsigmoid(copy_N).logaddexp(predicted_N)).where(corrupted_BL.flatten() == wanted_N, predicted_N)
        log_N = log_N * batch.real_BL.flatten()

        def loss(reduction: Reduction) -> Tensor:
            return -log_N if reduction == "none" else -log_N.sum()

        return self._main_loss(batch, loss, batch.real_BL)

    def _main_inputs(self, batch: Batch, layers: int | None) -> HeadInputs:
        """The main model at masked positions, and its head over the vocabulary, without the probability of a copy."""
        corrupted_BL, _ = self._corrupted(batch)
        with first_layers(self.backbone, layers):
            _, hidden_BMD = encode_at(self.backbone, batch.positions_BM, corrupted_BL, **batch.inputs)
        return HeadInputs(hidden_BMD, batch.labels_BM, partial(predict_words, self))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        judged = max(1.0, sums["tokens" if self.config.objective == "all_tokens_mlm" else "masked"])
        return self.generator_metrics(sums) | {
            self.main_loss_name: sums["main_loss"] / judged,
            "replaced_rate": sums["replaced"] / judged,
        }

    def floor(self, metrics: Mapping[str, float], unigram_floor: float | None) -> float | None:
        """Held-out loss of a model that knows only token frequencies and the share of replaced tokens."""
        if unigram_floor is None or self.config.objective == "replace_mlm":
            return unigram_floor
        replaced = metrics["replaced_rate"]
        return prior_entropy(replaced) + replaced * unigram_floor


class ElectraForReplacedMaskedLM(ReplacedMaskedLMMixin, ElectraForMaskedLM):
    """ELECTRA's two models, of which the main one predicts tokens: `replace_mlm` or `all_tokens_mlm`.

    The main model's parameters have their stock names; those of the generator begin with `generator.`.
    """

    config_class = EffptElectraConfig
    stock_class = ElectraForMaskedLM
    generator_class = ElectraForMaskedLM
    detecting = "ElectraForJointPreTraining"
