"""MC-BERT: selects the original of every token among candidates of a meta controller (Xu et al., 2020).

The meta controller is ELECTRA's generator. The original of a replaced token is among its candidates; for any other
token the answer is "none of the above", a row of the embedding table that no token has.
B batch, L row length, M masked positions per row, N positions in all, K candidates, D hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertModel, ElectraForMaskedLM, ElectraModel, PreTrainedModel

from hf_effpt.core.anatomy import word_head_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs

from .base import EffptMixin
from .candidates import candidate_logits, chunks
from .configuration_electra import McBertConfig
from .electra import detector, prior_entropy, replaced_loss
from .generator import Batch, JointOutput, WithGenerator
from .masked_lm import token_loss
from .sampling import sample, sample_distinct
from .sparse_layer import gather_rows

# The head of an ELECTRA that is as wide as its tables is that of a BERT under other names.
BERT_NAMES = {
    "electra.": "bert.",
    "generator_predictions.": "cls.predictions.transform.",
    "generator_lm_head.weight": "cls.predictions.decoder.weight",
    "generator_lm_head.bias": "cls.predictions.bias",
    "generator.generator_lm_head.bias": "cls.predictions.decoder.bias",  # BERT has it twice
}
NEVER = -1e4  # bias of a token that is never predicted: its probability is 0, also in half precision
SELECTION_WEIGHT = 0.4  # relative to replaced-token detection: 2 to 5 (`official/projects/teams` of tensorflow/models)


class McBertModel(EffptMixin, ElectraModel):
    """The encoder alone."""

    config_class = McBertConfig
    stock_class = ElectraModel

    @classmethod
    def stock_class_of(cls, config: McBertConfig) -> Any:
        return partial(BertModel, add_pooling_layer=False) if config.is_bert else ElectraModel


class McBertMixin(WithGenerator):
    """A [`WithGenerator`] that chooses among candidates of its meta controller, `generator`, by a head over the
    vocabulary, whose probabilities over all tokens are therefore not calibrated.
    """

    main_loss_name = "candidate_loss"
    training_only = ("generator.", "discriminator_predictions.")
    decoder_name: ClassVar[str]

    def complete(self, config: Any) -> None:
        super().complete(config)
        self._excluded: tuple[tuple, Tensor] | None = None

    def own_initializers(self) -> dict[str, Callable[[Tensor], Any]]:
        as_table = partial(nn.init.normal_, std=self.config.initializer_range)  # of one column
        own = {**super().own_initializers(), f"{self.decoder_name}.bias": as_table}
        if self.selects:
            own["discriminator_predictions.dense_prediction.weight"] = nn.init.xavier_uniform_  # as ELECTRA's
        return own

    def _add_heads(self, config: Any) -> None:
        bias = f"{self.decoder_name}.bias"
        self._tied_weights_keys = {**self._tied_weights_keys, f"generator.{bias}": bias}
        if self.selects:
            self.discriminator_predictions = detector(config)

    @property
    def _bias(self) -> Tensor:
        """Bias of each token of the vocabulary, also in the controller."""
        return word_head_of(self)[1].bias

    def _without_labels(self, output: Any) -> Any:
        """Takes rows that are no answer from the logits over the vocabulary, in place."""
        output[0][..., self._no_answers] += NEVER - self._bias[self._no_answers]
        return output

    @property
    def _no_answers(self) -> list[int]:
        """Rows that no text has behind a mask: "none of the above", the answer to most tokens in training, and tokens
        that are never sampled, which are no candidates, so that nothing is learned against them.
        """
        return sorted({self.config.nota_token_id, *self.config.never_sampled})

    def before_export(self) -> None:
        super().before_export()
        with torch.no_grad():
            self._bias[self._no_answers] = NEVER

    def after_loading(self) -> None:
        """Lets rows that an export never answers be answered again; half precision rounds their bias."""
        super().after_loading()
        with torch.no_grad():
            self._bias.masked_fill_(self._bias <= NEVER / 2, 0.0)

    @property
    def selects(self) -> bool:
        """`True` if only masked positions have candidates, and replaced tokens are detected everywhere."""
        return self.config.candidates_at == "masked"

    def _learn_jointly(self, batch: Batch) -> JointOutput:
        hidden, logits_NV, generator_loss = self._generate(batch, everywhere=not self.selects)
        drawn_BMK = self._draw(batch, logits_NV)
        corrupted_BL, replaced_BL = self._insert(batch, drawn_BMK[:, :, 0])
        sums = self._generator_sums(batch, logits_NV, generator_loss, replaced_BL)
        learn = self._learn_to_select if self.selects else self._learn_to_choose
        loss, per, logits, losses = learn(batch, hidden, drawn_BMK, corrupted_BL, replaced_BL)
        return self._joined(
            batch, generator_loss, loss, per,
            logits=logits, corrupted_ids=corrupted_BL, replaced=replaced_BL, sums=sums | losses,
        )  # fmt: skip

    def _learn_to_choose(
        self, batch: Batch, hidden_BLD: Tensor, drawn_BMK: Tensor, corrupted_BL: Tensor, replaced_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The summed loss over all tokens, its divisor, the candidates' logits, and sums for metrics."""
        candidates_BLK = self._draw_elsewhere(batch, hidden_BLD, drawn_BMK)
        candidates_BLK, repeated_BLK = self._candidates(batch, candidates_BLK, replaced_BL)
        with self.own_stream():
            outputs_BLD = self.backbone(corrupted_BL, return_dict=True, **batch.inputs).last_hidden_state
            logits_BLK = self._candidate_logits(outputs_BLD, candidates_BLK).masked_fill(repeated_BLK, -torch.inf)
        answer_BL = torch.where(batch.real_BL, replaced_BL.long(), -100)
        loss_of = partial(token_loss, logits_BLK.flatten(0, 1), answer_BL.flatten())
        loss = self._main_loss(batch, loss_of, batch.real_BL)
        return loss, batch.items[1], logits_BLK, {"main_loss": loss}

    def _learn_to_select(
        self, batch: Batch, hidden: Tensor, drawn_BMK: Tensor, corrupted_BL: Tensor, replaced_BL: Tensor
    ) -> tuple[Tensor, int, Tensor, dict[str, Tensor]]:
        """The loss of selection and detection, already averaged, and the rest as in [`_learn_to_choose`].

        Methods observe and weight the loss of selection only, but for their own look at the losses of all parts.
        """
        truth_BM1 = batch.original_BL.gather(1, batch.positions_BM)[:, :, None]
        candidates_BMK = torch.cat([truth_BM1, drawn_BMK[:, :, 1:]], dim=2)
        with self.own_stream():
            outputs_BLD = self.backbone(corrupted_BL, return_dict=True, **batch.inputs).last_hidden_state
            logits_BL = self.discriminator_predictions(outputs_BLD)
            logits_BMK = self._candidate_logits(gather_rows(outputs_BLD, batch.positions_BM), candidates_BMK)
        detecting = partial(replaced_loss, logits_BL, replaced_BL, batch.real_BL)
        detection = self._main_loss(batch, detecting, batch.real_BL, is_main=False)
        answer_BM = torch.where(batch.chosen_BM, 0, -100)
        loss_of = partial(token_loss, logits_BMK.flatten(0, 1), answer_BM.flatten())
        selection = self._main_loss(batch, loss_of, batch.chosen_BM)
        loss = detection / batch.items[1] + SELECTION_WEIGHT * selection / batch.items[0]
        return loss, 1, logits_BL, {"main_loss": selection, "detection_loss": detection}

    def _main_inputs(self, batch: Batch, layers: int | None) -> HeadInputs:
        raise EffptError(
            f"`{type(self).__name__}` chooses among a few candidates, so its probabilities cannot be compared from "
            "token to token; use the generator instead (`scorer: generator`)."
        )

    def _draw(self, batch: Batch, logits_NV: Tensor) -> Tensor:
        """K draws per masked position, of shape `(batch_size, positions, K)`; the first replaces the token."""
        uniform_NK = batch.uniforms(batch.positions_BM, self.config.candidates).flatten(0, 1)
        truth_N1 = batch.original_BL.gather(1, batch.positions_BM).flatten()[:, None]
        drawn_NK = torch.empty_like(uniform_NK, dtype=torch.long)
        for part in chunks(*logits_NV.shape):
            possible_NV = self._possible(logits_NV[part].detach().clone())
            if self.selects:
                others_NV = possible_NV.scatter(1, truth_N1[part], -torch.inf)
                drawn_NK[part, :1] = sample(possible_NV, uniform_NK[part, :1])
                drawn_NK[part, 1:] = sample_distinct(others_NV, uniform_NK[part, 1:])
            else:
                drawn_NK[part] = sample(possible_NV, uniform_NK[part])
        return drawn_NK.unflatten(0, batch.positions_BM.shape)

    @torch.no_grad()
    def _draw_elsewhere(self, batch: Batch, hidden_BLD: Tensor, drawn_BMK: Tensor) -> Tensor:
        """K draws per position, of shape `(batch_size, sequence_length, K)`; those at masked positions are reused."""
        length = batch.masked_BL.shape[1]
        # Static shapes: the masked positions of a row are distinct.
        taken_BL = torch.zeros_like(batch.masked_BL).scatter(1, batch.positions_BM, 1)
        other_BO = taken_BL.argsort(dim=1, stable=True)[:, : length - batch.positions_BM.shape[1]]
        uniform_NK = batch.uniforms(other_BO, self.config.candidates).flatten(0, 1)
        hidden_ND = gather_rows(hidden_BLD, other_BO).flatten(0, 1)
        drawn = [
            sample(self._possible(self.generator_logits(hidden_ND[part])), uniform_NK[part])
            for part in chunks(len(hidden_ND), self.config.vocab_size)
        ]
        drawn_BOK = torch.cat([drawn_BMK.new_empty(0, drawn_BMK.shape[2]), *drawn]).unflatten(0, other_BO.shape)
        positions_BL = torch.cat([batch.positions_BM, other_BO], dim=1)
        every_BLK = torch.cat([drawn_BMK, drawn_BOK], dim=1)
        return torch.zeros_like(every_BLK).scatter(1, positions_BL[:, :, None].expand_as(every_BLK), every_BLK)

    def _possible(self, logits_NV: Tensor) -> Tensor:
        """Sets the logits of tokens that are never sampled to -inf, in place."""
        known = (tuple(self.config.never_sampled), logits_NV.device)
        if self._excluded is None or self._excluded[0] != known:  # cached: copying a list waits for the device
            self._excluded = (known, torch.tensor(known[0], dtype=torch.long, device=known[1]))
        return logits_NV.index_fill_(1, self._excluded[1], -torch.inf)

    def _candidates(self, batch: Batch, drawn_BLK: Tensor, replaced_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates, and a mask of repetitions of the correct token, which is in place 1.

        Where nothing is replaced, the token itself may be a candidate and counts as wrong, as in the released code.
        """
        none_BL = torch.full_like(batch.original_BL, self.config.nota_token_id)
        second_BL = torch.where(replaced_BL, batch.original_BL, drawn_BLK[:, :, 1])
        candidates_BLK = torch.cat([torch.stack([none_BL, second_BL], dim=2), drawn_BLK[:, :, 2:]], dim=2)
        repeated_BLK = replaced_BL[:, :, None] & (candidates_BLK == batch.original_BL[:, :, None])
        repeated_BLK[:, :, 1] = False
        return candidates_BLK, repeated_BLK & (not self.config.faithful)

    def _candidate_logits(self, outputs_BLD: Tensor, candidates_BLK: Tensor) -> Tensor:
        transform, decoder = word_head_of(self)
        features_ND, candidates_NK = transform(outputs_BLD).flatten(0, 1), candidates_BLK.flatten(0, 1)
        logits_NK = candidate_logits(features_ND, decoder.weight, decoder.bias, candidates_NK)
        return logits_NK.view(candidates_BLK.shape)

    def cost_signature(self) -> str:
        return f"{super().cost_signature()} {self.config.candidates} candidates at {self.config.candidates_at}"

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        masked, tokens = max(1.0, sums["masked"]), max(1.0, sums["tokens"])
        replaced = sums["replaced"] / tokens
        metrics = self.generator_metrics(sums) | {"replaced_rate": replaced}
        if self.selects:
            detection = {"detection_loss": sums["detection_loss"] / tokens, "detection_floor": prior_entropy(replaced)}
            guess = math.log(self.config.candidates)
            return metrics | {"candidate_loss": sums["main_loss"] / masked, "floor": guess, **detection}
        # The loss of a model that knows only the share of replaced tokens.
        floor = prior_entropy(replaced) + replaced * math.log(self.config.candidates - 1)
        return metrics | {"candidate_loss": sums["main_loss"] / tokens, "floor": floor}


class McBertForPreTraining(McBertMixin, ElectraForMaskedLM):
    """MC-BERT with its meta controller, `generator`; exports to a `BertForMaskedLM`."""

    config_class = McBertConfig
    stock_class = ElectraForMaskedLM
    generator_class = ElectraForMaskedLM
    decoder_name = "generator_lm_head"

    @classmethod
    def stock_class_of(cls, config: McBertConfig) -> type[PreTrainedModel]:
        return BertForMaskedLM if config.is_bert else ElectraForMaskedLM

    def stock_name(self, name: str) -> str | None:
        if not self.config.is_bert:
            return super().stock_name(name)
        return next((new + name[len(old) :] for old, new in BERT_NAMES.items() if name.startswith(old)), None)
