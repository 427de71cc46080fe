"""Configuration of the training models: stock BERT's, plus the ledger of the methods."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .pruned_bert import PrunedBertConfig

LEDGER = ("methods", "layer_order", "events", "layer_widths")


@strict
class EffptBertConfig(BertConfig):
    """Configuration of a BERT that trains with methods; `stock()` is the configuration of what it exports to.

    Args:
        methods (`dict[str, dict]`, *optional*): settings of the methods by name, for example
            `{"layerdrop": {"p": 0.2}}`.
        layer_order (`list[int]`, *optional*): indices of the layers that run at present, first to last; by default
            all.
        events (`list[dict]`, *optional*): how methods have changed the model so far, with the step of each change.
        layer_widths (`list[list[int]]`, *optional*): number of attention heads and of feed-forward neurons of every
            layer that is allocated; by default all have as many.
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
        self.__dict__.pop("auto_map", None)  # of a narrower model that is trained further; there is no code to save

    def stock(self) -> BertConfig:
        """The configuration of the model it exports to, without ledger, at its present depth.

        A stock one, or with narrower layers a [`PrunedBertConfig`].
        """
        own = {"model_type", "architectures", "transformers_version", *LEDGER}
        settings = {key: value for key, value in self.to_dict().items() if key not in own}
        if self.layer_order is not None:
            settings["num_hidden_layers"] = len(self.layer_order)
        if self.layer_widths is None:
            return BertConfig(**settings)
        order = range(len(self.layer_widths)) if self.layer_order is None else self.layer_order
        return PrunedBertConfig(**settings, layer_widths=[self.layer_widths[index] for index in order])
