"""The generator: a small masked language model whose samples replace tokens in the input of the main model.

It is ELECTRA's generator and MC-BERT's meta controller. It trains along with the main model and shares its embeddings
and their LayerNorm (google-research/electra, `modeling`).
B batch, L row length, M masked positions per row, N positions in all, D hidden size, V vocabulary.
"""

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_effpt.core.anatomy import activation_of, layer_types_of, set_generator, word_head_of, word_table_of
from hf_effpt.core.depth import first_layers, flatten, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.head_inputs import HeadInputs
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.padding import real_tokens
from hf_effpt.core.random import places_in_rows, row_keys
from hf_effpt.core.token_losses import Reduction, observed_loss

from .base import PretrainingMixin, fill
from .configuration_effpt import settings_of
from .encoder_inputs import encoder_inputs
from .masked_lm import token_loss
from .resizing import resize_parts
from .sampling import sample, uniforms
from .sparse_layer import drops, encode_at, gather_rows, positions_of


@dataclass
class JointOutput(ModelOutput):
    """Output of a model with a generator.

    Args:
        loss (`Tensor`): the generator's loss plus `loss_weight` times the main model's.
        generator_loss, main_loss (`Tensor`): the two losses.
        logits (`Tensor`, *optional*): the main model's, if it computes them for every token.
        corrupted_ids (`Tensor` of shape `(batch_size, sequence_length)`): the input of the main model.
        replaced (`Tensor` of shape `(batch_size, sequence_length)`): `True` where it differs from the original.
        sums (`dict[str, Tensor]`): sums over the batch from which metrics are computed.
    """

    loss: Tensor | None = None
    generator_loss: Tensor | None = None
    main_loss: Tensor | None = None
    logits: Tensor | None = None
    corrupted_ids: Tensor | None = None
    replaced: Tensor | None = None
    sums: dict[str, Tensor] | None = None


@dataclass
class Batch:
    """A masked batch, in the form both models use."""

    masked_BL: Tensor  # ids with masks
    original_BL: Tensor
    positions_BM: Tensor
    labels_BM: Tensor  # original ids at masked positions, -100 at filler positions
    real_BL: Tensor  # False at padding
    inputs: dict[str, Any]  # further encoder inputs, such as the attention mask
    items: tuple[Tensor, Tensor]  # masked positions and real tokens, of the whole optimizer step if known
    weight_inputs: Tensor | None = None  # for methods that weight the main loss

    @property
    def chosen_BM(self) -> Tensor:
        return self.labels_BM != -100

    @property
    def keys_B(self) -> Tensor:
        """A key for the random numbers of each row."""
        return row_keys(self.masked_BL, self.real_BL)

    def uniforms(self, positions_BM: Tensor, draws: int) -> Tensor:
        """Numbers in [0, 1) to draw by at these positions, which padding on either side leaves as they are."""
        return uniforms(self.keys_B, places_in_rows(self.real_BL).gather(1, positions_BM), draws)


class WithGenerator(PretrainingMixin):
    """Adds a generator and methods to a stock ELECTRA or ModernBERT class; placed before it in the bases.

    Attributes:
        words (`str`): name of the main model's table of word embeddings.
        shared (`dict[str, str]`): names of the embeddings that both models have, by their names in the generator.
    """

    training_only: ClassVar[tuple[str, ...]] = ("generator.",)
    generator_class: ClassVar[Any]  # stock masked language model with the encoder of the main model

    def complete(self, config: Any) -> None:
        self.generator = self.generator_class(config.generator_config())
        for encoder in (self.backbone, self.generator.base_model):
            stack_of(encoder)
        set_generator(self.backbone, self.generator.base_model)
        table, embeddings = word_table_of(self.backbone), f"{self.base_model_prefix}.embeddings"
        self.words = f"{next(name for name, module in self.named_modules() if module is table)}.weight"
        own = [f"{embeddings}.{name}" for name, _ in self.backbone.embeddings.named_parameters()]
        self.shared = {f"generator.{name}": name for name in own}
        self._add_heads(config)
        # Set on the object: the constructor of the stock class ties weights before there is a generator.
        self._tied_weights_keys = {**(self._tied_weights_keys or {}), **self.shared}
        if config.disentangled:
            del self._tied_weights_keys[f"generator.{self.words}"]
        self.post_init()
        if config.disentangled:
            table.register_forward_hook(self._add_generators_words)
        self.generator.set_attn_implementation(config._attn_implementation)
        with torch.no_grad():
            for name, initialize in self.own_initializers().items():
                initialize(self.get_parameter(name))
        self._is_complete = True

    def own_initializers(self) -> dict[str, Callable[[Tensor], Any]]:
        """Functions that initialize, in place, parameters that do not begin as in the stock class, by name."""
        own: dict[str, Callable[[Tensor], Any]] = {self.words: nn.init.zeros_} if self.config.disentangled else {}
        for name in (prefix := self.base_model_prefix, f"generator.{prefix}"):
            if hasattr(self.get_submodule(name), "embeddings_project"):
                own[f"{name}.embeddings_project.weight"] = nn.init.xavier_uniform_  # TensorFlow's default
        return own

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initializes like the stock class, and parameters that loaded weights lack as those of a new model.

        Disentangled word embeddings that only the main model has become those of the generator, from which the main
        model's then do not differ.
        """
        if not self.__dict__.get("_is_complete"):
            super().initialize_weights()
            return
        lacking = {name for name, p in self.named_parameters() if not getattr(p, "_is_hf_initialized", False)}
        super().initialize_weights()
        for name, initialize in self.own_initializers().items():
            if name in lacking:
                initialize(self.get_parameter(name))
        if self.config.disentangled and f"generator.{self.words}" in lacking and self.words not in lacking:
            own, generators = (self.get_parameter(name) for name in (self.words, f"generator.{self.words}"))
            generators.copy_(own)
            own.zero_()

    def _add_generators_words(self, table: nn.Embedding, args: tuple, output: Tensor) -> Tensor:
        """Adds the generator's word embeddings, without gradient, to the discriminator's (disentangled sharing)."""
        words = word_table_of(self.generator.base_model)
        return output + nn.functional.embedding(args[0], words.weight.detach())

    def before_export(self) -> None:
        if self.config.disentangled:
            table = word_table_of(self.backbone)
            with torch.no_grad():
                table.weight += word_table_of(self.generator.base_model).weight
            table._forward_hooks.clear()

    def _add_heads(self, config: Any) -> None:
        """Adds further heads to the main model, or initializes its stock head."""

    def _learn(self, batch: Mapping[str, Any]) -> JointOutput:
        return self._learn_jointly(self._batch(batch))

    def _learn_jointly(self, batch: Batch) -> JointOutput:
        """The losses of a masked batch."""
        raise NotImplementedError

    def head_inputs(
        self, batch: Mapping[str, Tensor], layers: int | None = None, of_generator: bool = False
    ) -> HeadInputs:
        masked = self._batch(batch)
        return self._generator_inputs(masked, layers) if of_generator else self._main_inputs(masked, layers)

    def _generator_inputs(self, batch: Batch, layers: int | None = None) -> HeadInputs:
        encoder = self.generator.base_model
        with first_layers(encoder, layers):
            _, hidden_BMD = encode_at(encoder, batch.positions_BM, batch.masked_BL, **batch.inputs)
        return HeadInputs(hidden_BMD, batch.labels_BM, partial(predict_words, self.generator))

    def _main_inputs(self, batch: Batch, layers: int | None) -> HeadInputs:
        """The main model's part of [`head_inputs`]."""
        raise NotImplementedError

    def _corrupted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The input ids of the main model, and a mask of those that are not the originals."""
        inputs = self._generator_inputs(batch)
        _, logits_NV = inputs.head(inputs.hidden_BMD.flatten(0, 1))
        return self._insert(batch, self._sample(batch, logits_NV))

    @staticmethod
    def count_items(batch: Mapping[str, Tensor]) -> Tensor:
        """Numbers of masked positions and of tokens without padding in a micro-batch, of shape `(2,)`."""
        real = real_tokens(batch["labels"], batch.get("attention_mask"), batch.get("document_ids"))
        return torch.stack([(batch["labels"] != -100).sum(), real.sum()])

    def _batch(self, given: Mapping[str, Any]) -> Batch:
        """The arguments of `forward` in the form both models use."""
        inputs = encoder_inputs(self, given)
        inputs.pop("inputs_embeds", None)
        input_ids, labels = inputs.pop("input_ids"), given["labels"]
        if input_ids is None:
            raise EffptError(
                f"`{type(self).__name__}` replaces tokens by those of its generator, so it learns from `input_ids`, "
                "not from `inputs_embeds`; pass the ids too."
            )
        masked_positions, items = given.get("masked_positions"), given.get("num_items_in_batch")
        if masked_positions is None:
            masked_positions = positions_of(labels)
        # An entry that repeats another one becomes a filler: each position is learned from, and drawn for, once.
        repeated_BM = (masked_positions[:, :, None] == masked_positions[:, None]).tril(-1).any(dim=2)
        free_BM = torch.zeros_like(labels).scatter(1, masked_positions, 1).argsort(dim=1, stable=True)
        free_BM = free_BM.gather(1, (repeated_BM.cumsum(dim=1) - 1).clamp(min=0))
        labels_BM = labels.gather(1, masked_positions).masked_fill(repeated_BM, -100)
        masked_positions = torch.where(repeated_BM, free_BM, masked_positions)
        real_BL = real_tokens(labels, given.get("attention_mask"), given.get("document_ids"))
        masked, real = (labels_BM != -100).sum().clamp(min=1), real_BL.sum().clamp(min=1)
        if torch.is_tensor(items) and items.ndim == 1:
            masked, real = items.clamp(min=1).unbind()
        elif items is not None:  # the stock Trainer counts labels only: tokens are scaled alike
            masked, real = items, real * items / masked
        return Batch(
            input_ids, torch.where(labels != -100, labels, input_ids), masked_positions, labels_BM, real_BL, inputs,
            (masked, real), given.get("loss_weight_inputs"),
        )  # fmt: skip

    def _generate(self, batch: Batch, everywhere: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the generator's encoder, its logits at masked positions, and its summed loss there.

        Outputs are those of every position if `everywhere` is `True`.
        """
        encoder = self.generator.base_model
        if everywhere:
            hidden = encoder(batch.masked_BL, return_dict=True, **batch.inputs).last_hidden_state
            hidden_BMD = gather_rows(hidden, batch.positions_BM)
        else:
            outputs, hidden_BMD = encode_at(encoder, batch.positions_BM, batch.masked_BL, **batch.inputs)
            hidden = outputs.last_hidden_state
        logits_NV = self.generator_logits(hidden_BMD.flatten(0, 1))
        return hidden, logits_NV, token_loss(logits_NV, batch.labels_BM.flatten())

    def generator_logits(self, hidden_ND: Tensor) -> Tensor:
        """The generator's logits for some of its outputs, of shape `(positions, vocab_size)`."""
        return predict_words(self.generator, hidden_ND)[1]

    def _main_loss(
        self, batch: Batch, loss: Callable[[Reduction], Tensor], labelled_BP: Tensor, is_main: bool = True
    ) -> Tensor:
        """The summed loss of the main model, which methods observe and may weight."""
        return observed_loss(self.backbone, loss, labelled_BP, batch.weight_inputs, is_main)

    def _insert(self, batch: Batch, samples_BM: Tensor) -> tuple[Tensor, Tensor]:
        """The original ids with samples at masked positions, and a mask of ids that differ from the originals."""
        inserted_BM = torch.where(batch.chosen_BM, samples_BM, batch.original_BL.gather(1, batch.positions_BM))
        corrupted_BL = batch.original_BL.scatter(1, batch.positions_BM, inserted_BM)
        return corrupted_BL, corrupted_BL != batch.original_BL

    def _sample(self, batch: Batch, logits_NV: Tensor) -> Tensor:
        """One sample per masked position, of shape `(batch_size, positions)`."""
        uniform_BM1 = batch.uniforms(batch.positions_BM, 1)
        return sample(logits_NV, uniform_BM1.flatten(0, 1)).view_as(batch.positions_BM)

    def _generator_sums(self, batch: Batch, logits_NV: Tensor, loss: Tensor, replaced_BL: Tensor) -> dict[str, Tensor]:
        guessed = (logits_NV.argmax(dim=1) == batch.labels_BM.flatten()).sum()
        sums = {"generator_loss": loss, "guessed": guessed, "masked": batch.chosen_BM.sum()}
        return sums | {"replaced": replaced_BL.sum(), "tokens": batch.real_BL.sum()}

    def _joined(self, batch: Batch, generator: Tensor, main: Tensor, per: Tensor | int, **output: Any) -> JointOutput:
        """The output, from both losses summed over the batch; `per` divides the main one."""
        generator, main = generator / batch.items[0], main / per
        output["sums"] = {name: value.detach() for name, value in output["sums"].items()}
        if self.training:
            accumulator_of(self.backbone).add(**output["sums"])
        loss = generator + self.config.main_weight * main
        return JointOutput(loss=loss, generator_loss=generator, main_loss=main, **output)

    @staticmethod
    def generator_metrics(sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the generator, from sums over batches."""
        masked = max(1.0, sums["masked"])
        return {"generator_loss": sums["generator_loss"] / masked, "generator_accuracy": sums["guessed"] / masked}

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Context for the main model's dropout, so that the generator draws the same dropout as when trained alone.

        The numbers are those of a stream seeded by the state of the global one, which is restored afterwards.
        """
        if not self.training or not drops(self.config) or self.device.type == "meta":
            yield
            return
        on_cuda = self.device.type == "cuda"
        random = torch.cuda.default_generators[self.device.index or 0] if on_cuda else torch.default_generator
        if not drops(self.generator.config):  # the global stream has not advanced since the last call
            torch.rand(1, device=self.device if on_cuda else "cpu")
        state = random.get_state()
        random.manual_seed(zlib.crc32(state.numpy().tobytes()))
        try:
            yield
        finally:
            random.set_state(state)

    def export_generator(self) -> PreTrainedModel:
        """The generator as a stock model, with its own copy of shared embeddings."""
        plain, config = copy.deepcopy(self.generator), self.config.generator_config()
        order = stack_of(plain.base_model).order
        config.num_hidden_layers = len(order)
        if (types := layer_types_of(config)) is not None:
            config.layer_types = [types[index] for index in order]
        flatten(plain.base_model)
        with torch.device("meta"):
            stock = self.generator_class(config)
        fill(stock, plain)
        return stock

    def extra_exports(self) -> dict[str, PreTrainedModel]:
        return {"generator": self.export_generator()}

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the tables of both models as in the stock class.

        New rows of disentangled word embeddings are the generator's. Raises an `EffptError` if the configuration does
        not allow the size.
        """
        before, step = self.config.vocab_size, pad_to_multiple_of or 1
        size = -(-(new_num_tokens or before) // step) * step
        type(self.config)(**{**settings_of(self.config), "vocab_size": size})
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.disentangled and size > before:
            with torch.no_grad():
                table.weight[before:] = 0
        self.generator.resize_token_embeddings(size, mean_resizing=mean_resizing)
        self.tie_weights()
        resize_parts(self)
        return table

    def cost_signature(self) -> str:
        generator, own = self.generator.config, self.config
        order = stack_of(self.generator.base_model).order
        sizes = f"{len(order)}x{generator.hidden_size}x{generator.intermediate_size}"
        types = layer_types_of(generator)
        near = 0 if types is None else sum(types[layer] == "sliding_attention" for layer in order)
        heads = f"{generator.num_attention_heads} heads {activation_of(generator)}"
        heads += f"{' dropout' if drops(generator) else ''}{f' {near} sliding' if near else ''}"
        width = f"{getattr(own, 'embedding_size', own.hidden_size)}{' disentangled' if own.disentangled else ''}"
        return f"{own.objective} embedding {width} generator {sizes} {heads}"


def predict_words(model: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Input of the decoder of an ELECTRA or ModernBERT with a head over the vocabulary, and its logits."""
    transform, decoder = word_head_of(model)
    features = transform(hidden)
    return features, decoder(features)
