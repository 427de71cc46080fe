"""Configurations of models that learn from tokens replaced by a small generator."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, ElectraConfig, ModernBertConfig, PreTrainedConfig

from hf_effpt.core.errors import EffptError
from hf_effpt.core.shares import part_of

from .configuration_effpt import EffptModernBertConfig, WithLedger, settings_of
from .generator_settings import WithCandidates, WithGeneratorSettings

# Sizes of the embeddings that generator and main model share.
SHARED = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")


@strict
class EffptElectraConfig(WithGeneratorSettings, WithLedger, ElectraConfig):
    """Configuration of an ELECTRA that trains its generator and discriminator together, with methods.

    Sizes are the discriminator's; `stock()` gives the configuration of its export.

    Args:
        generator_size (`float`, *optional*, defaults to 0.25): width of the generator as a fraction of the
            discriminator's, in (0, 1]; the depth is equal. 1/4 to 1/2 work best (Clark et al., section 3.2).
        objective, generator, generator_dropout, embedding_sharing, loss_weight: as in [`WithGeneratorSettings`].
        methods, layer_order, events, layer_widths: as in [`EffptBertConfig`].

    Raises:
        EffptError: as [`WithGeneratorSettings`]; a generator is too large if it is wider than the discriminator.
    """

    model_type = "effpt_electra"
    stock_config = ElectraConfig
    shared = SHARED

    objective: str = "electra"
    generator_size: float | int = 0.25
    generator: dict | None = None
    generator_dropout: bool = True
    embedding_sharing: str = "vanilla"
    loss_weight: float | int | None = None
    methods: dict | None = None
    layer_order: list | None = None
    events: list | None = None
    layer_widths: list | None = None

    def _generator_sizes(self, given: dict[str, Any]) -> dict[str, Any]:
        hidden = given.get("hidden_size", part_of(self.generator_size, self.hidden_size, least=1))
        if hidden > self.hidden_size:
            raise EffptError(
                f"The generator is {hidden} wide, more than the {self.hidden_size} of the model it trains; set "
                "`generator_size` to 1 at most, better 0.25 to 0.5."
            )
        heads = next(heads for heads in range(max(1, hidden // 64), 0, -1) if hidden % heads == 0)
        return {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": heads}

    def stock(self) -> PreTrainedConfig:
        """Configuration of the main model's export, at the present depth."""
        settings = self.at_present_depth()
        settings.pop("layer_widths", None)  # its export has the full width
        return ElectraConfig(**settings)


@strict
class McBertConfig(WithCandidates, EffptElectraConfig):
    """Configuration of MC-BERT: a model of BERT's shape that chooses among candidates of a meta controller.

    Args:
        embedding_size (`int`, *optional*): width of the tables; by default the hidden size, as in BERT.
        generator_size (`float`, *optional*, defaults to 1/3): width of the meta controller as a fraction of the
            model's, as released for the base size.
        candidates, candidates_at, faithful, nota_token_id, special_token_ids, loss_weight: as in [`WithCandidates`].
        generator, generator_dropout, methods, layer_order, events, layer_widths: as in [`EffptElectraConfig`].

    Raises:
        EffptError: as [`EffptElectraConfig`] and [`WithCandidates`].
    """

    model_type = "mcbert"

    objective: str = "mcbert"
    embedding_size: int | None = None
    generator_size: float | int = 1 / 3
    candidates: int | None = None
    candidates_at: str = "all"
    faithful: bool = False
    nota_token_id: int | None = None
    special_token_ids: list | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        super().__post_init__(**kwargs)

    @property
    def is_bert(self) -> bool:
        """`True` if the main model has the architecture of a BERT, and so exports as one."""
        return self.embedding_size == self.hidden_size and self.hidden_act == "gelu"

    def stock(self) -> PreTrainedConfig:
        config = super().stock()
        return BertConfig(**bert_settings(config)) if self.is_bert else config


def bert_settings(config: ElectraConfig) -> dict[str, Any]:
    """Keyword arguments of the `BertConfig` of the same encoder."""
    settings = settings_of(config, "embedding_size")
    return {key: value for key, value in settings.items() if not key.startswith("summary_")}


@strict
class ModernElectraConfig(WithGeneratorSettings, EffptModernBertConfig):
    """Configuration of a ModernBERT that trains as a discriminator, with a generator and methods.

    Sizes are the discriminator's; `stock()` gives the configuration of its export.

    Args:
        generator_size (`float`, *optional*, defaults to 1/3): depth of the generator as a fraction of the
            discriminator's, in (0, 1]; the width is equal, since both have one table, whose width that of a
            ModernBERT is. 1/3 is COCO-LM's (Meng et al., 2021), 1/2 DeBERTaV3's.
        objective, generator, generator_dropout, embedding_sharing, loss_weight: as in [`WithGeneratorSettings`].
        methods, layer_order, events, layer_widths, kept_heads: as in [`EffptModernBertConfig`].

    Raises:
        EffptError: as [`WithGeneratorSettings`] and [`EffptModernBertConfig`]; a generator is too large if it is
            deeper than the discriminator.
    """

    model_type = "modern_electra"
    stock_config = ModernBertConfig
    shared = ("vocab_size", "hidden_size", "norm_eps", "norm_bias", "max_position_embeddings", "pad_token_id")

    objective: str = "electra"
    generator_size: float | int = 1 / 3
    generator: dict | None = None
    generator_dropout: bool = True
    embedding_sharing: str = "vanilla"
    loss_weight: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not self.decoder_bias:
            raise EffptError("The generator's head has a bias: `decoder_bias` cannot be False.")
        super().__post_init__(**kwargs)

    def _generator_sizes(self, given: dict[str, Any]) -> dict[str, Any]:
        layers = given.get("num_hidden_layers", part_of(self.generator_size, self.num_hidden_layers, least=1))
        if layers > self.num_hidden_layers:
            raise EffptError(
                f"The generator has {layers} layers, more than the {self.num_hidden_layers} of the model it trains; "
                "set `generator_size` to 1 at most, better 1/3 to 1/2."
            )
        types = given.get("layer_types", (self.layer_types or [])[:layers])
        if len(types) != layers:
            raise EffptError(f"The generator's `layer_types` is {types}, but must name one kind for each of {layers}.")
        return {"num_hidden_layers": layers, "layer_types": types}


@strict
class ModernMcBertConfig(WithCandidates, ModernElectraConfig):
    """Configuration of a ModernBERT that chooses among candidates of a meta controller, as MC-BERT does.

    Args:
        candidates, candidates_at, faithful, nota_token_id, special_token_ids, loss_weight: as in [`WithCandidates`].
        generator_size, generator, generator_dropout, methods, layer_order, events, layer_widths, kept_heads: as in
            [`ModernElectraConfig`].

    Raises:
        EffptError: as [`ModernElectraConfig`] and [`WithCandidates`].
    """

    model_type = "modern_mcbert"

    objective: str = "mcbert"
    candidates: int | None = None
    candidates_at: str = "all"
    faithful: bool = False
    nota_token_id: int | None = None
    special_token_ids: list | None = None
