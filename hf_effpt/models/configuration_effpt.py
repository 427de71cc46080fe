"""Configuration of the training models: stock BERT's, plus the ledger of the methods."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

LEDGER = ("methods", "layer_order", "events")


@strict
class EffptBertConfig(BertConfig):
    """Configuration of a BERT that trains with methods; `stock()` is the configuration of what it exports to.

    Args:
        methods (`dict[str, dict]`, *optional*): settings of the methods by name, for example
            `{"layerdrop": {"p": 0.2}}`.
        layer_order (`list[int]`, *optional*): indices of the layers that run at present, first to last; by default
            all.
        events (`list[dict]`, *optional*): how methods have changed the model so far, with the step of each change.
    """

    model_type = "effpt_bert"
    default_methods: ClassVar[dict[str, dict]] = {}

    methods: dict | None = None
    layer_order: list | None = None
    events: list | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.methods = {**self.default_methods, **(self.methods or {})}

    def stock(self) -> BertConfig:
        """The stock configuration of the same model, without ledger, at its present depth."""
        own = {"model_type", "architectures", "transformers_version", *LEDGER}
        settings = {key: value for key, value in self.to_dict().items() if key not in own}
        if self.layer_order is not None:
            settings["num_hidden_layers"] = len(self.layer_order)
        return BertConfig(**settings)
