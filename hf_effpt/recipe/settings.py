"""The `model` and `data` sections of a recipe, and the table of all sections."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from hf_effpt.core.anatomy import layer_types_of
from hf_effpt.core.clock import scheduled
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.core.settings import In, Like, When, check_effects, idle_error
from hf_effpt.data.document_cuts import CUTS
from hf_effpt.data.document_selection import SelectSettings
from hf_effpt.data.mixture import parts_of_mixture
from hf_effpt.hub.card_settings import CardSettings
from hf_effpt.models.build import config_for
from hf_effpt.models.from_checkpoint import config_from, continue_from
from hf_effpt.training.arguments import EffptTrainingArguments
from hf_effpt.training.next_tokens import CLM, MLM

from .sections import parse_section, require, scheduled_numbers

SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
COUNTS = (*SHAPE, "max_position_embeddings")
# name -> the first three of them; the BERT miniatures of Turc et al. (2019), and BERT itself
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}

# Settings that only some objectives have.
OF_GENERATORS = ("embedding_size", "generator_size", "generator_dropout", "embedding_sharing", "loss_weight")
OF_MCBERT = ("candidates", "candidates_at", "faithful")
# Settings that only ModernBERT has.
OF_MODERNBERT = ("layer_types", "local_attention", "rotary_base")
NEW = When(from_=None)  # a checkpoint has its own
MODERN = When(backbone="modernbert", from_=None)
GENERATED, CHOSEN = When(objective=tuple(OBJECTIVES)[1:], from_=None), When(objective="mcbert")
TRAINED = When(tokenizer=None)  # one that is given has its own
OF_FILES = When(dataset=Like(r"(?!builtin:).*", "other than `builtin:pydoc`"))


@dataclass
class StartSettings:
    """Values that parameters of a new model begin with, other than the stock ones.

    Args:
        bias (`str`, *optional*): `unigram`: the bias of the head over the vocabulary is the log frequency of each
            token in the training rows, as [`set_unigram_bias`] sets it; by default zero.
        embeddings (`str`, *optional*): `cooccurrence`: word embeddings are vectors made from the co-occurrence of
            tokens in the training rows, as [`set_cooccurrence_embeddings`] sets them, and charged to the budget; by
            default random.
    """

    bias: Literal["unigram"] | None = None
    embeddings: Literal["cooccurrence"] | None = None


@dataclass
class ModelSettings:
    """The encoder to train and its objective.

    Args:
        size (`str`, *optional*, defaults to `"small"`): BERT shape: `tiny` (2 layers of 128), `mini` (4 of 256),
            `small` (4 of 512), `medium` (8 of 512), `base` (12 of 768) or `large` (24 of 1024).
        backbone (`str`, *optional*, defaults to `"bert"`): architecture: `bert`, or `modernbert` (Warner et al.,
            2024), with rotary positions, norms before its layers, gated neurons and no biases.
        objective (`str` or `dict`, *optional*, defaults to `"mlm"`): pre-training objective: `mlm`, `electra`,
            `electra_15`, `replace_mlm`, `all_tokens_mlm` or `mcbert`. Or a schedule by fractions of the clock that
            learns next tokens first and ends with `mlm`, `{0: clm, 0.5: mlm}` (Gisserot-Boukhlef et al., 2025).
        num_hidden_layers, hidden_size, num_attention_heads (`int`, *optional*): each overrides that of `size`. With
            `from`, the number of layers that `stacking` grows a shallower checkpoint to.
        intermediate_size (`int`, *optional*): width of the feed-forward layers; by default 4 times the hidden size,
            and in a ModernBERT, whose neurons have gates, the multiple of 64 with about as many parameters.
        max_position_embeddings (`int`, *optional*): longest sequence that the model can read; by default 512, or that
            of the checkpoint, whose table is repeated for more.
        dropout (`float`, *optional*, defaults to 0.0): dropout of hidden states and attention in pre-training. BERT
            has 0.1; with a small budget each token is seen about once, and none is better (Geiping and Goldstein,
            2022).
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`): attention kernel of `transformers`.
        layer_types (`list[str]`, *optional*): attention of each layer of a ModernBERT, `full_attention` or
            `sliding_attention`; by default every third is full, from the first on.
        local_attention (`int`, *optional*): window of sliding attention, half of it on either side of a token; by
            default 128.
        rotary_base (`float` or `dict`, *optional*): base of the rotary positions of full attention; by default
            160,000. Sliding attention has 10,000. ModernBERT begins with 10,000 and raises it with the length of its
            rows: `{0: 10000, 0.9: 160000}`, by fractions of the clock that are those of `data.sequence_length`.
        embedding_size (`int`, *optional*): width of the embeddings; by default the hidden size. Not for `mlm`.
        generator_size (`float`, *optional*): width of the generator as a share of the model's, by default 1/4; for
            MC-BERT that of the meta controller, by default 1/3. In a ModernBERT it is a share of the layers, by
            default 1/3, since both are as wide as their common table.
        generator_dropout (`bool`, *optional*): `True`, the default, if the generator has the model's dropout.
        embedding_sharing (`str`, *optional*): embeddings shared by ELECTRA's two models: `vanilla`, as published, or
            `disentangled` (DeBERTaV3).
        loss_weight (`float`, *optional*): weight of the main loss beside the generator's; by default as published.
        candidates (`int`, *optional*): candidates per position of MC-BERT; by default 10.
        candidates_at (`str`, *optional*): positions where MC-BERT has candidates: `all`, the default, or `masked`.
        faithful (`bool`, *optional*): if `True`, MC-BERT reproduces the defects of the released code.
        from (`str`, *optional*): folder or Hub id of a stock checkpoint to go on from, whose architecture, shape and
            tokenizer are taken: a BERT, ModernBERT, RoBERTa, XLM-RoBERTa, CamemBERT or DistilBERT with its masked-
            language-modelling head, or an ELECTRA with its generator, as [`continue_from`] says.
        start (`dict`, *optional*): values that parameters begin with, by the settings of [`StartSettings`]:
            `{"bias": "unigram", "embeddings": "cooccurrence"}`.

    Raises:
        EffptError: for an impossible shape, or a setting that the objective does not have.
    """

    backbone: Annotated[Literal["bert", "modernbert"], NEW] = "bert"
    size: Annotated[Literal["tiny", "mini", "small", "medium", "base", "large"], NEW] = "small"
    objective: (
        Literal["mlm", "electra", "electra_15", "replace_mlm", "all_tokens_mlm", "mcbert", "clm"] | dict[Any, Any]
    ) = "mlm"
    num_hidden_layers: int | None = None
    hidden_size: Annotated[int | None, NEW] = None
    num_attention_heads: Annotated[int | None, NEW] = None
    intermediate_size: Annotated[int | None, NEW] = None
    max_position_embeddings: int | None = None
    dropout: float = 0.0
    attn_implementation: str = "sdpa"
    layer_types: Annotated[list[str] | None, MODERN] = None
    local_attention: Annotated[int | None, MODERN] = None
    rotary_base: Annotated[float | dict[Any, Any] | None, MODERN] = None
    embedding_size: Annotated[int | None, When(backbone="bert", objective=tuple(OBJECTIVES)[1:], from_=None)] = None
    generator_size: Annotated[float | None, GENERATED] = None
    generator_dropout: Annotated[
        bool | None, When(objective=tuple(OBJECTIVES)[1:], dropout=In("(0, 1)"), from_=None)
    ] = None
    embedding_sharing: Annotated[Literal["vanilla", "disentangled"] | None, GENERATED] = None
    loss_weight: Annotated[float | None, GENERATED] = None
    candidates: Annotated[int | None, CHOSEN] = None
    candidates_at: Annotated[Literal["all", "masked"] | None, CHOSEN] = None
    faithful: Annotated[bool | None, CHOSEN] = None
    from_: str | None = None
    start: Annotated[dict[str, Any] | str | None, NEW] = (
        None  # `str` only so that the section itself refuses a word, by name
    )

    def __post_init__(self) -> None:
        require(self.size in SIZES, "model.size", self.size, f"one of {', '.join(SIZES)}")
        objectives: list[Any] = list(self.objectives.values())
        self.objective = self.objectives if len(objectives) > 1 else objectives[0]
        needed = f"one of {', '.join(OBJECTIVES)}, or a schedule that ends with `mlm`, such as {{0: clm, 0.5: mlm}}"
        known = (
            {*objectives} == {CLM, MLM} and objectives[-1] == MLM if objectives[1:] else self.objective in OBJECTIVES
        )
        require(known, "model.objective", self.objective, needed)
        changing = all(a != b for a, b in pairwise(objectives))
        require(changing, "model.objective", self.objective, "another in each phase than before")
        check_effects(self, "model")
        if self.from_ is not None:
            require(0.0 <= self.dropout < 1.0, "model.dropout", self.dropout, "at least 0 and below 1")
            config_from(self.from_, self.exported, **self._wanted())  # that of more layers depends on the methods
            return
        if self.max_position_embeddings is None:
            self.max_position_embeddings = 512
        require(0.0 <= self.dropout < 1.0, "model.dropout", self.dropout, "at least 0 and below 1")
        if self.start is not None:
            begins = parse_section("model.start", StartSettings, self.start)
            self.start = {key: value for key, value in asdict(begins).items() if value is not None}
        shape = self.config_kwargs()
        for key, value in shape.items():
            require(key not in COUNTS or value >= 1, f"model.{key}", value, "at least 1")
        hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
        multiple = f"a multiple of `model.num_attention_heads`, {heads}"
        require(hidden % heads == 0, "model.hidden_size", hidden, multiple)
        self._check_attention(layer_types_of(self.config()))

    def _check_attention(self, types: list[str] | None) -> None:
        """Raises an `EffptError` if a setting is of a kind of attention that no layer has."""
        for key, kind in (("local_attention", "sliding_attention"), ("rotary_base", "full_attention")):
            if getattr(self, key) is not None and kind not in (types or ()):
                raise idle_error("model", key, getattr(self, key), f"`{kind}` in one of the `layer_types`")

    def config(self, **more: Any) -> Any:
        """Builds the configuration of the training model; raises `EffptError` for an impossible setting.

        `more` are settings from the tokenizer and the methods, such as `vocab_size`.
        """
        if self.from_ is not None:
            return config_from(self.from_, self.exported, layers=self.num_hidden_layers, **self._wanted(), **more)
        own = {key: getattr(self, key) for key in (*OF_GENERATORS, *OF_MCBERT) if getattr(self, key) is not None}
        config = config_for(self.exported, self.backbone, **{**self.config_kwargs(), **own, **more})
        config._attn_implementation = self.attn_implementation
        return config

    @property
    def objectives(self) -> dict[float, str]:
        """Objectives by the fraction of the clock from which each holds, from 0 on."""
        found = scheduled(self.objective, "model.objective")
        require(all(isinstance(one, str) for one in found.values()), "model.objective", self.objective, "of names")
        return found

    @property
    def exported(self) -> str:
        """The last objective, for which the model is made, and by which it is evaluated and exported."""
        return [*self.objectives.values()][-1]

    @property
    def rotary_bases(self) -> dict[float, float]:
        """Bases of the rotary positions by the fraction of the clock from which each holds; none by default."""
        if self.rotary_base is None:
            return {}
        return scheduled_numbers(self.rotary_base, "model.rotary_base", float)

    def load(self, methods: dict[str, dict]) -> Any:
        """The training model with the weights of the checkpoint `from`."""
        assert self.from_ is not None
        return continue_from(
            self.from_, self.exported, methods=methods, layers=self.num_hidden_layers,
            attn_implementation=self.attn_implementation, **self._wanted(),
        )  # fmt: skip

    def _wanted(self) -> dict[str, Any]:
        return {"dropout": self.dropout, "positions": self.max_position_embeddings}

    def config_kwargs(self) -> dict[str, Any]:
        """Returns the shape and dropout as keyword arguments of a `BertConfig` or `ModernBertConfig`."""
        own = {key: getattr(self, key) for key in SHAPE if getattr(self, key) is not None}
        shape = dict(zip(SHAPE, SIZES[self.size], strict=False)) | own
        shape["max_position_embeddings"] = self.max_position_embeddings
        hidden = shape["hidden_size"]
        if self.backbone == "bert":
            shape.setdefault("intermediate_size", 4 * hidden)
            return {**shape, "hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        shape.setdefault("intermediate_size", max(64, round(8 * hidden / 3 / 64) * 64))
        keys = ("layer_types", "local_attention")
        windows: dict[str, Any] = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if bases := self.rotary_bases:
            for base in bases.values():
                require(0 < base < float("inf"), "model.rotary_base", base, "above 0 and finite")
            self.rotary_base = bases if len(bases) > 1 else bases[0.0]
            full = {"rope_type": "default", "rope_theta": bases[0.0]}
            windows["rope_parameters"] = {
                "full_attention": full,
                "sliding_attention": {**full, "rope_theta": 10_000.0},
            }
        dropouts = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), self.dropout)
        return {**shape, **windows, **dropouts, "pad_token_id": 0}


@dataclass
class DataSettings:
    """The training text, and how it becomes rows of tokens.

    Args:
        dataset (`str` or `list`): a folder or file of `.txt`, `.jsonl`, `.json`, `.csv` (packed as `.gz` or `.zst`
            too) or `.parquet`, a dataset on the Hub, a folder of `Dataset.save_to_disk`, or `builtin:pydoc`, the
            documentation strings of the installed Python packages. Or a list of them; or a mixture,
            `[{path: a/, weight: 3}, {path: b/, weight: 1}]`, whose documents are drawn in proportion to the weights
            until one source has no more. Or a folder made by `effpt pack`, whose rows have their own length,
            tokenizer, isolation and held-out text.
        text_column (`str`, *optional*, defaults to `"text"`): column that holds the text.
        split (`str`, *optional*, defaults to `"train"`): split to train on, of a source that has splits.
        streaming (`bool`, *optional*, defaults to `False`): if `True`, read the dataset once without storing its text.
        documents (`str`, *optional*): documents of a `.txt` file: what stands between `blank_lines`, its `lines`, or
            the whole `file`; by default guessed, as [`open_corpus`] says.
        validation (`str` or `list`, *optional*, defaults to `"0.01"`): share of the text to hold out, in whole
            documents, from 0 to below 1; or a separate dataset, given like `dataset`.
        sequence_length (`int` or `dict`, *optional*, defaults to 128): tokens per row; or a schedule, with longer rows
            of the same text from a fraction of the clock on, `{0: 128, 0.9: 1024}`. Steps have as many tokens
            throughout, so fewer rows.
        isolate_documents (`bool`, *optional*, defaults to `False`): if `True`, documents packed in one row do not
            attend to each other.
        mlm_probability (`float`, `dict` or `list`, *optional*, defaults to 0.15): share of a row's tokens to predict;
            or a schedule by fractions of the clock, `{0: 0.3, 0.5: 0.15}`, or its first and last value, `[0.4, 0.15]`,
            between which it changes in ten equal steps. Held-out text always has 0.15.
        whole_word (`bool`, *optional*, defaults to `False`): if `True`, mask whole words rather than single tokens.
        tokenizer (`str`, *optional*): a folder or Hub id; by default that of `model.from`, or else one is trained on
            the dataset.
        add_tokens (`str`, *optional*): words that a checkpoint's WordPiece vocabulary is to have, too: a file with one
            a line, or the number of them to learn from the text. They begin as the mean of their pieces.
        vocab_size (`int`, *optional*, defaults to 8192): size of a trained tokenizer, a multiple of 64.
        tokenizer_kind (`str`, *optional*, defaults to `"wordpiece"`): kind of a trained tokenizer, `wordpiece` or
            `bpe`.
        lowercase (`bool`, *optional*, defaults to `True`): if `True`, a trained tokenizer lowercases text.
        strip_accents (`bool`, *optional*): if `True`, a trained tokenizer strips accents, and with them the vowel and
            tone marks of most scripts of Asia. By default only from English text, lowercased, by a WordPiece one.
        num_proc (`int`, *optional*): number of threads that tokenize; by default one per core.
        cache_dir (`str`, *optional*): folder of all prepared data; by default `~/.cache/hf_effpt`.
        select (`dict`, *optional*): selects the documents to train on before training, by the settings of
            [`SelectSettings`]: `{"deduplicate": "near"}`, or `{"model": "small_run/", "keep": 0.5, "band": "middle"}`.
            The held-out text and the tokenizer do not depend on it.

    Raises:
        EffptError: for an impossible value.
    """

    dataset: str | list[Any]
    text_column: Annotated[str, OF_FILES] = "text"
    split: Annotated[str, OF_FILES] = "train"
    streaming: Annotated[bool, OF_FILES] = False
    documents: Literal["blank_lines", "lines", "file"] | None = None
    validation: str | list[Any] = "0.01"
    sequence_length: int | dict[Any, Any] = 128
    isolate_documents: bool = False
    mlm_probability: float | dict[Any, Any] | list[Any] = 0.15
    whole_word: bool = False
    tokenizer: str | None = None
    add_tokens: str | None = None
    vocab_size: Annotated[int, TRAINED] = 8192
    tokenizer_kind: Annotated[Literal["wordpiece", "bpe"], TRAINED] = "wordpiece"
    lowercase: Annotated[bool, TRAINED] = True
    strip_accents: Annotated[bool | None, TRAINED] = None
    num_proc: int | None = None
    cache_dir: str | None = None
    select: dict[str, Any] | str | None = None  # `str` only so that the section itself refuses a word, by name

    def __post_init__(self) -> None:
        require(bool(self.dataset), "data.dataset", self.dataset, "a file, folder, Hub dataset or builtin:pydoc")
        if not isinstance(self.dataset, str):
            parts_of_mixture(self.dataset)
        check_effects(self, "data")
        self.add_tokens = None if self.add_tokens is None else str(self.add_tokens)
        require(self.words_to_add != 0, "data.add_tokens", self.add_tokens, "a file, or at least 1")
        if isinstance(self.validation, list):
            parts_of_mixture(self.validation)
        else:
            self.validation = str(self.validation)
        held_out = self.held_out
        if isinstance(held_out, float):
            require(0.0 < held_out < 1.0, "data.validation", held_out, "a share from 0 to below 1, or a dataset")
        require(
            self.documents in (None, *CUTS), "data.documents", self.documents, f"one of {', '.join(CUTS)}, or left out"
        )
        lengths = list(self.lengths.values())
        require(min(lengths) >= 8, "data.sequence_length", self.sequence_length, "at least 8")
        rising = all(a < b for a, b in pairwise(lengths))
        require(rising, "data.sequence_length", self.sequence_length, "longer in each phase than before")
        self.sequence_length = self.lengths if len(lengths) > 1 else lengths[0]
        rates = list(self.rates.values())
        self.mlm_probability = self.rates if len(rates) > 1 else rates[0]
        between = all(0.0 < rate < 1.0 for rate in rates)
        require(between, "data.mlm_probability", self.mlm_probability, "between 0 and 1")
        changing = all(a != b for a, b in pairwise(rates))
        require(changing, "data.mlm_probability", self.mlm_probability, "another in each phase than before")
        require(
            self.tokenizer_kind in ("wordpiece", "bpe"), "data.tokenizer_kind", self.tokenizer_kind, "wordpiece or bpe"
        )
        require(self.num_proc is None or self.num_proc >= 1, "data.num_proc", self.num_proc, "at least 1")
        nearest = max(64, (self.vocab_size + 32) // 64 * 64)
        require(self.vocab_size == nearest, "data.vocab_size", self.vocab_size, f"a multiple of 64, such as {nearest}")
        if self.select is not None:
            self.select = parse_section("data.select", SelectSettings, self.select).settings()
            require(not self.streaming, "data.streaming", True, "false with `data.select`, which reads the text again")

    @property
    def lengths(self) -> dict[float, int]:
        """Tokens per row by the fraction of the clock from which rows have them, from 0 on."""
        return scheduled_numbers(self.sequence_length, "data.sequence_length", int)

    @property
    def rates(self) -> dict[float, float]:
        """Share of tokens to predict by the fraction of the clock from which it holds, from 0 on."""
        return scheduled_numbers(self.mlm_probability, "data.mlm_probability", float, listed=True)

    @property
    def selection(self) -> SelectSettings | None:
        """The typed settings of `select`."""
        return None if self.select is None else parse_section("data.select", SelectSettings, self.select)

    @property
    def words_to_add(self) -> str | int | None:
        """The parsed `add_tokens`: a file, a number of words, or `None`."""
        return int(self.add_tokens) if self.add_tokens is not None and self.add_tokens.isdigit() else self.add_tokens

    @property
    def held_out(self) -> float | str | list[Any] | None:
        """The parsed `validation`: a share, a dataset, or `None` if nothing is held out."""
        if isinstance(self.validation, list):
            return self.validation
        try:
            return float(self.validation) or None
        except ValueError:
            return self.validation


# name -> dataclass; under `methods` each method has a section of its own
SECTIONS: dict[str, Any] = {
    "model": ModelSettings,
    "methods": None,
    "data": DataSettings,
    "training": EffptTrainingArguments,
    "card": CardSettings,
}
