"""Configurations of the training models without a generator: the stock ones, plus the ledger of the methods."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, BertConfig, ModernBertConfig, PreTrainedConfig

from hf_effpt.core.anatomy import layer_types_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import without_idle

from .pruned_bert import PrunedBertConfig
from .pruned_modernbert import PrunedModernBertConfig

ATTENTIONS = ("full_attention", "sliding_attention")
LEDGER = ("methods", "layer_order", "events", "layer_widths", "kept_heads")


def settings_of(config: PreTrainedConfig, *left_out: str) -> dict[str, Any]:
    """The settings of a configuration, without its class, its version and `left_out`."""
    left_out = ("model_type", "architectures", "transformers_version", *left_out)
    return {key: value for key, value in config.to_dict().items() if key not in left_out}


class WithLedger:
    """Adds the ledger to a stock configuration class; placed before it in the bases."""

    default_methods: ClassVar[dict[str, dict]] = {}
    own: ClassVar[tuple[str, ...]] = LEDGER  # settings that no stock configuration has
    model_type: ClassVar[str]
    methods: Any
    layer_order: Any
    layer_widths: Any

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.methods = {**self.default_methods, **(self.methods or {})}
        self.__dict__.pop("auto_map", None)  # left by a narrower model trained further; there is no code to save

    @classmethod
    def get_config_dict(cls, source: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a configuration of this class, or of the stock class of the same architecture.

        Raises an `EffptError` if `source` is of another architecture.
        """
        found, kwargs = super().get_config_dict(source, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        kind = found.get("model_type")
        if kind is not None and kind != cls.model_type:
            if not _is_alike(cls, kind):
                raise EffptError(
                    f"{source} is of the architecture `{kind}`, and `{cls.__name__}` is one of "
                    f"`{cls.stock_type()}`; load it with the class of its architecture, or name another checkpoint."
                )
            found = {**found, "model_type": cls.model_type}
        return found, kwargs

    @classmethod
    def stock_type(cls) -> str:
        """The `model_type` of the stock class of the same architecture."""
        return next(base.model_type for base in cls.__mro__ if base.__module__.startswith("transformers.models."))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Reads a saved configuration; settings of methods that do nothing, and are refused now, are left out."""
        asked = kwargs.pop("methods", None)  # the stock class would set them after all others, without the defaults
        methods = without_idle(config_dict.get("methods")) if asked is None else asked
        saved = {**config_dict, "methods": methods}
        return super().from_dict(saved, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def at_present_depth(self) -> dict[str, Any]:
        """Settings of the stock configuration of the layers that run, with `layer_widths` if they are narrower."""
        settings: dict[str, Any] = settings_of(self, *self.own)  # pyright: ignore[reportArgumentType]
        if self.layer_order is not None:
            settings["num_hidden_layers"] = len(self.layer_order)
        for name, values in (("layer_types", layer_types_of(self)), ("layer_widths", self.layer_widths)):
            if values is not None:
                order = range(len(values)) if self.layer_order is None else self.layer_order
                settings[name] = [values[index] for index in order]
        return settings


def _is_alike(cls: Any, kind: str) -> bool:
    """`True` if configurations of this `model_type` are stock ones, or ours, of the same architecture as `cls`."""
    if kind == cls.stock_type():
        return True
    known = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else None
    stock = next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))
    return known is not None and issubclass(known, stock) and not known.__module__.startswith("transformers.")


@strict
class EffptBertConfig(WithLedger, BertConfig):
    """Configuration of a BERT that trains with methods; `stock()` gives that of its export.

    Args:
        methods (`dict[str, dict]`, *optional*): settings of the methods by name, for example
            `{"layerdrop": {"p": 0.2}}`.
        layer_order (`list[int]`, *optional*): indices of the layers that run, first to last; by default all.
        events (`list[dict]`, *optional*): changes that methods have made to the model, each with its step.
        layer_widths (`list[list[int]]`, *optional*): number of attention heads and of feed-forward neurons of every
            allocated layer; by default those of the stock model.
        kept_heads (`dict[str, list[int]]`, *optional*): shapes, by name, of tensors of the checkpoint that the model
            went on from which only its export has, such as a pooler.
    """

    model_type = "effpt_bert"

    methods: dict | None = None
    layer_order: list | None = None
    events: list | None = None
    layer_widths: list | None = None
    kept_heads: dict | None = None

    def stock(self) -> BertConfig:
        """Configuration of the export, at the present depth: a [`PrunedBertConfig`] if layers are narrower."""
        settings = self.at_present_depth()
        return BertConfig(**settings) if self.layer_widths is None else PrunedBertConfig(**settings)


@strict
class EffptModernBertConfig(WithLedger, ModernBertConfig):
    """Configuration of a ModernBERT that trains with methods; `stock()` gives that of its export.

    Args:
        methods, layer_order, events, layer_widths, kept_heads: as in [`EffptBertConfig`].

    Raises:
        EffptError: for a kind of attention that there is not, other than one a layer, a window narrower than one
            neighbour on either side, or a padding token beyond the vocabulary.
    """

    model_type = "effpt_modernbert"

    methods: dict | None = None
    layer_order: list | None = None
    events: list | None = None
    layer_widths: list | None = None
    kept_heads: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        types = self.layer_types
        if types is not None and (len(types) != self.num_hidden_layers or not {*types} <= {*ATTENTIONS}):
            raise EffptError(
                f"`layer_types` is {types}, but must name {' or '.join(ATTENTIONS)} for each of "
                f"{self.num_hidden_layers} layers, first to last."
            )
        super().__post_init__(**kwargs)
        if self.local_attention < 2:
            raise EffptError(
                f"`local_attention` is {self.local_attention}, but a window has at least 2 neighbours, one on either "
                "side; 8 are four on either side."
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise EffptError(
                f"`pad_token_id` is {self.pad_token_id}, but the vocabulary has rows 0 to {self.vocab_size - 1}; give "
                "that of the tokenizer that the text is packed with."
            )

    def stock(self) -> ModernBertConfig:
        """Configuration of the export, at the present depth: [`PrunedModernBertConfig`] if layers are narrower."""
        settings = self.at_present_depth()
        return ModernBertConfig(**settings) if self.layer_widths is None else PrunedModernBertConfig(**settings)
