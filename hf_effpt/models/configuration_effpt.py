"""Configuration of the BERT training models: the stock one, plus the ledger of the methods."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, PreTrainedConfig

from hf_effpt.core.registry import without_idle

from .pruned_bert import PrunedBertConfig

LEDGER = ("methods", "layer_order", "events", "layer_widths")


def settings_of(config: PreTrainedConfig, *left_out: str) -> dict[str, Any]:
    """The settings of a configuration, without its class, its version and `left_out`."""
    left_out = ("model_type", "architectures", "transformers_version", *left_out)
    return {key: value for key, value in config.to_dict().items() if key not in left_out}


class WithLedger:
    """Adds the ledger to a stock configuration class; placed before it in the bases."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Reads a saved configuration; settings of methods that do nothing, and are refused now, are left out."""
        saved = {**config_dict, "methods": without_idle(config_dict.get("methods"))}
        return super().from_dict(saved, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


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
    """

    model_type = "effpt_bert"
    default_methods: ClassVar[dict[str, dict]] = {}

    methods: dict | None = None
    layer_order: list | None = None
    events: list | None = None
    layer_widths: list | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.methods = {**self.default_methods, **(self.methods or {})}
        self.__dict__.pop("auto_map", None)  # left by a narrower model trained further; there is no code to save

    def stock(self) -> BertConfig:
        """Configuration of the export, at the present depth: a [`PrunedBertConfig`] if layers are narrower."""
        settings = settings_of(self, *LEDGER)
        if self.layer_order is not None:
            settings["num_hidden_layers"] = len(self.layer_order)
        if self.layer_widths is None:
            return BertConfig(**settings)
        order = range(len(self.layer_widths)) if self.layer_order is None else self.layer_order
        return PrunedBertConfig(**settings, layer_widths=[self.layer_widths[index] for index in order])
