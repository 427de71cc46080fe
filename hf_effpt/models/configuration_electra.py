"""Configurations of models that learn from what a small generator puts in the place of tokens."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, ElectraConfig, PreTrainedConfig

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

from .configuration_effpt import LEDGER

# What generator and main model share, so that their sizes cannot differ.
SHARED = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
OBJECTIVES = ("electra", "electra_15", "replace_mlm", "all_tokens_mlm")
# The weight of the main loss beside the generator's: ELECTRA's is published (`configure_pretraining`); the losses over
# the vocabulary are of the generator's own size.
LOSS_WEIGHTS = {"electra": 50.0, "electra_15": 50.0, "replace_mlm": 1.0, "all_tokens_mlm": 1.0, "mcbert": 50.0}


@strict
class EffptElectraConfig(ElectraConfig):
    """Configuration of an ELECTRA that trains its generator and discriminator together, with methods.

    The sizes are the discriminator's; `stock()` is the configuration of what it exports to.

    Args:
        objective (`str`, *optional*, defaults to `"electra"`): `electra`, or one of the steps between it and masked
            language modelling (Clark et al., 2020, table 5): `electra_15`, `replace_mlm` or
            `all_tokens_mlm`.
        generator_size (`float`, *optional*, defaults to 0.25): width of the generator as a share of the
            discriminator's, in (0, 1]; its depth is the same. Best are 1/4 to 1/2 (Clark et al., section 3.2).
        generator (`dict`, *optional*): sizes of the generator that are not to follow from `generator_size`, by the
            names of `ElectraConfig`.
        generator_dropout (`bool`, *optional*, defaults to `True`): whether the generator, which also samples in
            training mode, has the discriminator's dropout, or none (COCO-LM, Meng et al., 2021).
        embedding_sharing (`str`, *optional*, defaults to `"vanilla"`): `vanilla`, one table of words that learns from
            both losses, as published; or `disentangled`: the discriminator's is the generator's, which its loss does
            not reach, plus one of its own that begins at zero (DeBERTaV3, He et al., 2021, arXiv 2111.09543); only
            with a discriminator.
        loss_weight (`float`, *optional*): of the discriminator's loss beside the generator's; by default 50 for a
            discriminator and 1 for a loss over the vocabulary.
        methods, layer_order, events, layer_widths: as in [`EffptBertConfig`].

    Raises:
        EffptError: for a generator wider than the discriminator, sizes that disagree with what the two share, or an
            impossible value.
    """

    model_type = "effpt_electra"
    default_methods: ClassVar[dict[str, dict]] = {}
    # What no stock configuration has.
    own: ClassVar[tuple[str, ...]] = (
        "objective",
        "generator_size",
        "generator",
        "generator_dropout",
        "embedding_sharing",
        "loss_weight",
        *LEDGER,
    )
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
        self.methods = {**self.default_methods, **(self.methods or {})}
        if self.objective not in self.objectives:
            raise EffptError(f"`objective` must be one of {', '.join(self.objectives)}, not {self.objective!r}.")
        if self.embedding_sharing not in ("vanilla", "disentangled"):
            raise EffptError(
                f"`embedding_sharing` must be `vanilla` or `disentangled`, not {self.embedding_sharing!r}."
            )
        if self.disentangled and self.objective not in ("electra", "electra_15"):
            raise EffptError(
                f"`embedding_sharing` `disentangled` goes with the objectives electra and electra_15, not with "
                f"`{self.objective}`, whose head is the table of words itself; leave it out."
            )
        if self.loss_weight is not None and not 0 <= self.loss_weight < float("inf"):
            raise EffptError(f"`loss_weight` must be a number of at least 0, not {self.loss_weight}.")
        if not 0 < self.generator_size:
            raise EffptError(f"`generator_size` must be in (0, 1], a share of the width, not {self.generator_size}.")
        if not self.tie_word_embeddings:
            raise EffptError("The generator's tables are the discriminator's: `tie_word_embeddings` cannot be False.")
        self.generator_config()

    @property
    def disentangled(self) -> bool:
        """Whether the discriminator's table of words is kept as what it adds to the generator's."""
        return self.embedding_sharing == "disentangled"

    @property
    def main_weight(self) -> float:
        """The weight of the main model's loss."""
        return LOSS_WEIGHTS[self.objective] if self.loss_weight is None else float(self.loss_weight)

    def generator_config(self) -> ElectraConfig:
        """The stock configuration of the generator.

        Raises:
            EffptError: if it is wider than the main model, or does not fit what the two share.
        """
        width = max(1, round(self.generator_size * self.hidden_size))
        given = dict(self.generator or {})
        if unknown := sorted(set(given) - set(self._plain())):
            raise EffptError(f"`generator` has no setting `{unknown[0]}`: {nearest(unknown[0], list(self._plain()))}")
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
            if given.get(name, 1) < 1:
                raise EffptError(f"The generator's `{name}` must be at least 1, not {given[name]}.")
        for name in SHARED:
            if given.get(name, getattr(self, name)) != getattr(self, name):
                raise EffptError(
                    f"The generator's `{name}` is {given[name]}, but the main model's is {getattr(self, name)}, and "
                    "they share their embeddings; make them equal."
                )
        hidden = given.get("hidden_size", width)
        if hidden > self.hidden_size:
            raise EffptError(
                f"The generator is {hidden} wide, more than the {self.hidden_size} of the model it trains; set "
                "`generator_size` to 1 at most, better 0.25 to 0.5."
            )
        heads = max(1, hidden // 64)
        while hidden % heads:
            heads -= 1
        dropout = {} if self.generator_dropout else dict.fromkeys(DROPOUT, 0.0)
        config = ElectraConfig(
            **{
                **self._plain(),
                "num_hidden_layers": self.num_hidden_layers,
                "hidden_size": hidden,
                "intermediate_size": 4 * hidden,
                "num_attention_heads": heads,
                **dropout,
                **given,
            }
        )
        if config.hidden_size % config.num_attention_heads:
            raise EffptError(
                f"The generator's {config.num_attention_heads} attention heads do not divide its width, "
                f"{config.hidden_size}; give `generator` another `num_attention_heads`."
            )
        return config

    def stock(self) -> PreTrainedConfig:
        """The stock configuration of the main model, without ledger, at its present depth."""
        settings = self._plain()
        if self.layer_order is not None:
            settings["num_hidden_layers"] = len(self.layer_order)
        return ElectraConfig(**settings)

    def _plain(self) -> dict[str, Any]:
        left_out = {"model_type", "architectures", "transformers_version", *self.own}
        return {key: value for key, value in self.to_dict().items() if key not in left_out}


# How many candidates there are by default, by where: MC-BERT's, and TEAMS' (`official/projects/teams`).
CANDIDATES = {"all": 10, "masked": 5}
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@strict
class McBertConfig(EffptElectraConfig):
    """Configuration of MC-BERT (Xu et al., 2020): a model that chooses among candidates of a meta controller.

    Args:
        embedding_size (`int`, *optional*): width of the tables; by default the hidden size, as in BERT.
        generator_size (`float`, *optional*, defaults to 1/3): width of the meta controller as a share of the model's,
            as released for the base size.
        candidates (`int`, *optional*): candidates at a position, "none of the above" or the truth among them; by
            default 10, and 5 at chosen positions only.
        candidates_at (`str`, *optional*, defaults to `"all"`): `all`, as published, or `masked`: candidates at chosen
            positions only, all different, with replaced-token detection at every token (TEAMS, Shen et al., 2021).
        faithful (`bool`, *optional*, defaults to `False`): as the released code does: the truth may be there several
            times, and special tokens may be sampled.
        nota_token_id (`int`, *optional*): the row of the table that stands for "none of the above", which no token may
            have; by default the last one.
        special_token_ids (`list[int]`, *optional*): further tokens that are never sampled, besides padding and "none
            of the above".
        loss_weight (`float`, *optional*): of the model's loss beside the controller's; by default 50, and 5 for
            candidates at chosen positions (`official/projects/teams` of tensorflow/models).
        generator, generator_dropout, methods, layer_order, events, layer_widths: as in [`EffptElectraConfig`].

    Raises:
        EffptError: as [`EffptElectraConfig`], and for a number of candidates that the vocabulary does not have.
    """

    model_type = "mcbert"
    own: ClassVar[tuple[str, ...]] = (
        *EffptElectraConfig.own,
        "candidates",
        "candidates_at",
        "faithful",
        "nota_token_id",
        "special_token_ids",
    )
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
        """Checks that so many candidates can be drawn.

        Raises:
            EffptError: if there are too few tokens, or too few candidates to choose among.
        """
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
        """The rows of the table that no sample is, in order."""
        if self.faithful:
            return []
        return sorted({self.nota_token_id, *(self.special_token_ids or []), self.pad_token_id} - {None})

    @property
    def is_bert(self) -> bool:
        """Whether the main model has the architecture of a BERT, and so exports as one."""
        return self.embedding_size == self.hidden_size and self.hidden_act == "gelu"

    def stock(self) -> PreTrainedConfig:
        config = super().stock()
        return BertConfig(**bert_settings(config)) if self.is_bert else config


def bert_settings(config: ElectraConfig) -> dict[str, Any]:
    """The keyword arguments of the `BertConfig` of the same encoder."""
    left_out = {"model_type", "architectures", "transformers_version", "embedding_size"}
    return {
        key: value for key, value in config.to_dict().items() if key not in left_out and not key.startswith("summary_")
    }
