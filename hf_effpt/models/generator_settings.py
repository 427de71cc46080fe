"""Settings of a generator, for the configurations of the models that learn from tokens that it replaces."""

import math
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hf_effpt.core.anatomy import dropouts_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import nearest

from .configuration_effpt import LEDGER, settings_of

OBJECTIVES = ("electra", "electra_15", "replace_mlm", "all_tokens_mlm")
# Weight of the main loss relative to the generator's. ELECTRA's is published (`configure_pretraining`); losses over
# the vocabulary are as large as the generator's own.
LOSS_WEIGHTS = {"electra": 50.0, "electra_15": 50.0, "replace_mlm": 1.0, "all_tokens_mlm": 1.0, "mcbert": 50.0}
# Default number of candidates by `candidates_at`: MC-BERT's, and TEAMS' (`official/projects/teams`).
CANDIDATES = {"all": 10, "masked": 5}


class WithGeneratorSettings:
    """Adds the settings of a generator to a configuration with a ledger; placed before it in the bases.

    Args:
        objective (`str`, *optional*, defaults to `"electra"`): `electra`, or an objective between it and masked
            language modelling (Clark et al., 2020, table 5): `electra_15`, `replace_mlm` or `all_tokens_mlm`.
        generator_size (`float`, *optional*): size of the generator as a share of the main model's, in (0, 1].
        generator (`dict`, *optional*): settings of the generator by the names of its stock configuration, in place of
            those derived from `generator_size`.
        generator_dropout (`bool`, *optional*, defaults to `True`): if `False`, the generator has no dropout (COCO-LM,
            Meng et al., 2021); else that of the discriminator, also while it samples in training.
        embedding_sharing (`str`, *optional*, defaults to `"vanilla"`): `vanilla`, one table of word embeddings that
            learns from both losses, as published; or `disentangled`: the discriminator's table is the generator's,
            without its gradient, plus a table of its own that begins at zero (DeBERTaV3, He et al., 2021, arXiv
            2111.09543). `disentangled` needs a discriminator.
        loss_weight (`float`, *optional*): weight of the discriminator's loss relative to the generator's; by default
            50 for a discriminator and 1 for a loss over the vocabulary.

    Raises:
        EffptError: for a generator larger than the main model, for sizes that differ where the two share embeddings,
            or for an invalid value.
    """

    own: ClassVar[tuple[str, ...]] = (
        "objective", "generator_size", "generator", "generator_dropout", "embedding_sharing", "loss_weight", *LEDGER,
    )  # fmt: skip
    objectives: ClassVar[tuple[str, ...]] = OBJECTIVES
    stock_config: ClassVar[type[PreTrainedConfig]]  # of the generator
    shared: ClassVar[tuple[str, ...]]  # settings that generator and main model have in common
    objective: str
    generator_size: float | int
    generator: dict | None
    generator_dropout: bool
    embedding_sharing: str
    loss_weight: float | int | None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
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
        if not 0 < self.generator_size < math.inf:
            raise EffptError(f"`generator_size` must be in (0, 1], a share of the model, not {self.generator_size}.")
        if not self.tie_word_embeddings:  # pyright: ignore[reportAttributeAccessIssue]
            raise EffptError("The generator's tables are the discriminator's: `tie_word_embeddings` cannot be False.")
        self.generator_config()
        if self.generator is not None:  # sizes of shared tables, in older checkpoints, are the main model's
            self.generator = {name: value for name, value in self.generator.items() if name not in self.shared}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
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

    def generator_config(self) -> Any:
        """The stock configuration of the generator.

        Raises an `EffptError` if it is larger than the main model, or its embeddings have another shape.
        """
        plain, given = settings_of(self, *self.own), dict(self.generator or {})  # pyright: ignore[reportArgumentType]
        if unknown := sorted(set(given) - set(plain)):
            raise EffptError(f"`generator` has no setting `{unknown[0]}`: {nearest(unknown[0], list(plain))}")
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
            if given.get(name, 1) < 1:
                raise EffptError(f"The generator's `{name}` must be at least 1, not {given[name]}.")
        for name in self.shared:
            if given.get(name, plain[name]) != plain[name]:
                raise EffptError(
                    f"The generator's `{name}` is {given[name]}, but the main model's is {plain[name]}, and they "
                    "share their embeddings; make them equal."
                )
        dropout = {} if self.generator_dropout else dict.fromkeys(dropouts_of(self), 0.0)
        config = self.stock_config(**{**plain, **self._generator_sizes(given), **dropout, **given})
        if config.hidden_size % config.num_attention_heads:
            raise EffptError(
                f"The generator's {config.num_attention_heads} attention heads do not divide its width, "
                f"{config.hidden_size}; give `generator` another `num_attention_heads`."
            )
        return config

    def _generator_sizes(self, given: dict[str, Any]) -> dict[str, Any]:
        """Sizes of the generator that follow from `generator_size`, and from those that are given."""
        raise NotImplementedError


class WithCandidates(WithGeneratorSettings):
    """Adds the settings of MC-BERT (Xu et al., 2020), a model that chooses among candidates of a meta controller.

    Args:
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

    Raises:
        EffptError: as [`WithGeneratorSettings`], and for more candidates than the vocabulary has tokens.
    """

    own: ClassVar[tuple[str, ...]] = (
        *WithGeneratorSettings.own, "candidates", "candidates_at", "faithful", "nota_token_id", "special_token_ids",
    )  # fmt: skip
    objectives: ClassVar[tuple[str, ...]] = ("mcbert",)
    vocab_size: int
    pad_token_id: int | None
    candidates: int | None
    candidates_at: str
    faithful: bool
    nota_token_id: int | None
    special_token_ids: list | None

    def __post_init__(self, **kwargs: Any) -> None:
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
