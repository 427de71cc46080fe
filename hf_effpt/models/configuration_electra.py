"""Configurations of models that learn from tokens replaced by a small generator."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, ElectraConfig, PreTrainedConfig

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest
from hf_effpt.core.shares import part_of

from .configuration_effpt import LEDGER, WithLedger, settings_of

# Sizes of the embeddings that generator and main model share.
SHARED = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
OBJECTIVES = ("electra", "electra_15", "replace_mlm", "all_tokens_mlm")
# Weight of the main loss relative to the generator's. ELECTRA's is published (`configure_pretraining`); losses over
# the vocabulary are as large as the generator's own.
LOSS_WEIGHTS = {"electra": 50.0, "electra_15": 50.0, "replace_mlm": 1.0, "all_tokens_mlm": 1.0, "mcbert": 50.0}


@strict
class EffptElectraConfig(WithLedger, ElectraConfig):
    """Configuration of an ELECTRA that trains its generator and discriminator together, with methods.

    Sizes are the discriminator's; `stock()` gives the configuration of its export.

    Args:
        objective (`str`, *optional*, defaults to `"electra"`): `electra`, or an objective between it and masked
            language modelling (Clark et al., 2020, table 5): `electra_15`, `replace_mlm` or `all_tokens_mlm`.
        generator_size (`float`, *optional*, defaults to 0.25): width of the generator as a fraction of the
            discriminator's, in (0, 1]; the depth is equal. 1/4 to 1/2 work best (Clark et al., section 3.2).
        generator (`dict`, *optional*): settings of the generator by the names of `ElectraConfig`, in place of those
            derived from `generator_size`.
        generator_dropout (`bool`, *optional*, defaults to `True`): if `False`, the generator has no dropout (COCO-LM,
            Meng et al., 2021); else that of the discriminator, also while it samples in training.
        embedding_sharing (`str`, *optional*, defaults to `"vanilla"`): `vanilla`, one table of word embeddings that
            learns from both losses, as published; or `disentangled`: the discriminator's table is the generator's,
            without its gradient, plus a table of its own that begins at zero (DeBERTaV3, He et al., 2021, arXiv
            2111.09543). `disentangled` needs a discriminator.
        loss_weight (`float`, *optional*): weight of the discriminator's loss relative to the generator's; by default
            50 for a discriminator and 1 for a loss over the vocabulary.
        methods, layer_order, events, layer_widths: as in [`EffptBertConfig`].

    Raises:
        EffptError: for a generator wider than the discriminator, for sizes that differ where the two share
            embeddings, or for an invalid value.
    """

    model_type = "effpt_electra"
    # Settings that no stock configuration has.
    own: ClassVar[tuple[str, ...]] = (
        "objective", "generator_size", "generator", "generator_dropout", "embedding_sharing", "loss_weight", *LEDGER,
    )  # fmt: skip
    objectives: ClassVar[tuple[str, ...]] = OBJECTIVES

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

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.objective not in self.objectives:
            raise EffptError(f"`objective` must be one of {', '.join(self.objectives)}, not {self.objective!r}.")
        if self.embedding_sharing not in ("vanilla", "disentangled"):
            raise EffptError(
                f"`embedding_sharing` must be `vanilla` or `disentangled`, not {self.embedding_sharing!r}."
            )
        if self.disentangled and self.objective not in ("electra", "electra_15"):
            raise EffptError(
                f"`embedding_sharing` `disentangled` goes with the objectives electra and electra_15, not with "
                f"`{self.objective}`, whose head is the word embedding itself; leave it out."
            )
        if self.loss_weight is not None and not 0 <= self.loss_weight < float("inf"):
            raise EffptError(f"`loss_weight` must be a number of at least 0, not {self.loss_weight}.")
        if not 0 < self.generator_size:
            raise EffptError(f"`generator_size` must be in (0, 1], a share of the width, not {self.generator_size}.")
        if not self.tie_word_embeddings:
            raise EffptError("The generator's tables are the discriminator's: `tie_word_embeddings` cannot be False.")
        self.generator_config()
        if self.generator is not None:  # sizes of shared tables, in older checkpoints, are the main model's
            self.generator = {name: value for name, value in self.generator.items() if name not in SHARED}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "EffptElectraConfig":
        """The configuration itself: `generator` has settings, and is no configuration as transformers takes it for."""
        return self

    @property
    def disentangled(self) -> bool:
        """`True` if the discriminator's word embeddings are kept as their difference from the generator's."""
        return self.embedding_sharing == "disentangled"

    @property
    def main_weight(self) -> float:
        """Weight of the main model's loss relative to the generator's."""
        return LOSS_WEIGHTS[self.objective] if self.loss_weight is None else float(self.loss_weight)

    def generator_config(self) -> ElectraConfig:
        """The stock configuration of the generator.

        Raises an `EffptError` if it is wider than the main model, or its embeddings have another shape.
        """
        width, plain, given = part_of(self.generator_size, self.hidden_size), self._plain(), dict(self.generator or {})
        if unknown := sorted(set(given) - set(plain)):
            raise EffptError(f"`generator` has no setting `{unknown[0]}`: {nearest(unknown[0], list(plain))}")
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
            if given.get(name, 1) < 1:
                raise EffptError(f"The generator's `{name}` must be at least 1, not {given[name]}.")
        for name in SHARED:
            if given.get(name, getattr(self, name)) != getattr(self, name):
                raise EffptError(
                    f"The generator's `{name}` is {given[name]}, but the main model's is {getattr(self, name)}, and "
                    "they share their embeddings; make them equal."
                )
        hidden = given.get("hidden_size", max(1, width))
        if hidden > self.hidden_size:
            raise EffptError(
                f"The generator is {hidden} wide, more than the {self.hidden_size} of the model it trains; set "
                "`generator_size` to 1 at most, better 0.25 to 0.5."
            )
        heads = next(heads for heads in range(max(1, hidden // 64), 0, -1) if hidden % heads == 0)
        sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": heads}
        dropout = {} if self.generator_dropout else dict.fromkeys(DROPOUT, 0.0)
        config = ElectraConfig(**{**plain, **sizes, **dropout, **given})
        if config.hidden_size % config.num_attention_heads:
            raise EffptError(
                f"The generator's {config.num_attention_heads} attention heads do not divide its width, "
                f"{config.hidden_size}; give `generator` another `num_attention_heads`."
            )
        return config

    def stock(self) -> PreTrainedConfig:
        """Configuration of the main model's export, at the present depth."""
        settings = self._plain()
        if self.layer_order is not None:
            settings["num_hidden_layers"] = len(self.layer_order)
        return ElectraConfig(**settings)

    def _plain(self) -> dict[str, Any]:
        return settings_of(self, *self.own)


# Default number of candidates by `candidates_at`: MC-BERT's, and TEAMS' (`official/projects/teams`).
CANDIDATES = {"all": 10, "masked": 5}
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@strict
class McBertConfig(EffptElectraConfig):
    """Configuration of MC-BERT (Xu et al., 2020): a model that chooses among candidates of a meta controller.

    Args:
        embedding_size (`int`, *optional*): width of the tables; by default the hidden size, as in BERT.
        generator_size (`float`, *optional*, defaults to 1/3): width of the meta controller as a fraction of the
            model's, as released for the base size.
        candidates (`int`, *optional*): candidates per position, including the correct answer; by default 10, or 5
            with `candidates_at="masked"`.
        candidates_at (`str`, *optional*, defaults to `"all"`): `all`, as published, or `masked`: distinct candidates
            at masked positions only, with replaced-token detection at every token (TEAMS, Shen et al., 2021).
        faithful (`bool`, *optional*, defaults to `False`): if `True`, as in the released code: the correct token may
            be among the candidates several times, and special tokens may be sampled.
        nota_token_id (`int`, *optional*): row of the embedding table for "none of the above", which no token may have;
            by default the last one.
        special_token_ids (`list[int]`, *optional*): tokens that are never sampled, besides padding and "none of the
            above".
        loss_weight (`float`, *optional*): weight of the model's loss relative to the controller's; by default 50, or
            5 with `candidates_at="masked"` (`official/projects/teams` of tensorflow/models).
        generator, generator_dropout, methods, layer_order, events, layer_widths: as in [`EffptElectraConfig`].

    Raises:
        EffptError: as [`EffptElectraConfig`], and for more candidates than the vocabulary has tokens.
    """

    model_type = "mcbert"
    own: ClassVar[tuple[str, ...]] = (
        *EffptElectraConfig.own, "candidates", "candidates_at", "faithful", "nota_token_id", "special_token_ids",
    )  # fmt: skip
    objectives: ClassVar[tuple[str, ...]] = ("mcbert",)

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
        if self.nota_token_id is None:
            self.nota_token_id = self.vocab_size - 1
        super().__post_init__(**kwargs)
        if self.candidates_at not in CANDIDATES:
            raise EffptError(f"`candidates_at` must be `all` or `masked`, not {self.candidates_at!r}.")
        if self.candidates is None:
            self.candidates = CANDIDATES[self.candidates_at]
        self.check_candidates()
        if not 0 <= self.nota_token_id < self.vocab_size:
            raise EffptError(
                f"`nota_token_id` is {self.nota_token_id}, but the vocabulary has rows 0 to {self.vocab_size - 1}; "
                "name one that no token has."
            )
        if not all(0 <= token < self.vocab_size for token in self.special_token_ids or []):
            raise EffptError(
                f"`special_token_ids` are {self.special_token_ids}, but the vocabulary has rows 0 to "
                f"{self.vocab_size - 1}; give `all_special_ids` of the tokenizer that the text is packed with."
            )

    def check_candidates(self) -> None:
        """Raises an `EffptError` if there are too few candidates, or more than tokens that may be sampled."""
        least = 3 if self.candidates_at == "all" else 2
        most = self.vocab_size - max(1, len(self.never_sampled))
        if self.candidates is None or not least <= self.candidates <= most:
            raise EffptError(
                f"`candidates` is {self.candidates}, but must be between {least} and {most}, the number of tokens "
                f"that may be sampled from the vocabulary of {self.vocab_size}."
            )

    @property
    def main_weight(self) -> float:
        if self.loss_weight is None and self.candidates_at == "masked":
            return 5.0
        return super().main_weight

    @property
    def never_sampled(self) -> list[int]:
        """Ids of tokens that are never sampled, in rising order."""
        if self.faithful:
            return []
        return sorted({self.nota_token_id, *(self.special_token_ids or []), self.pad_token_id} - {None})

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
