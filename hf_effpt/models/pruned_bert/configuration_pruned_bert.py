"""Configuration of a BERT with narrower layers than stock ones; saved beside the weights."""

from transformers import BertConfig

HEADS = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForMultipleChoice": "ForMultipleChoice",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}
AUTO_MAP = {
    "AutoConfig": "configuration_pruned_bert.PrunedBertConfig",
    **{auto_class: f"modeling_pruned_bert.PrunedBert{head}" for auto_class, head in HEADS.items()},
}


class PrunedBertConfig(BertConfig):
    """Configuration of a BERT with its own number of attention heads and feed-forward neurons in each layer.

    The size of a head is `hidden_size / num_attention_heads`, also where heads were removed.

    Args:
        layer_widths (`list[list[int]]`, *optional*): number of attention heads, from 0 to `num_attention_heads`, and
            of feed-forward neurons, from 1 to `intermediate_size`, of every layer; by default the largest.

    Raises:
        ValueError: if `layer_widths` has another length than `num_hidden_layers`, or a width is out of range.
    """

    model_type = "pruned_bert"
    _auto_class = "AutoConfig"  # saving the configuration saves this file

    layer_widths: list | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # Names all heads: saving a model by itself names only its own class.
        self.auto_map = dict(AUTO_MAP)
        if self.layer_widths is None:
            self.layer_widths = [[self.num_attention_heads, self.intermediate_size]] * self.num_hidden_layers
        self.layer_widths = [list(widths) for widths in self.layer_widths]
        self.check_widths()

    def check_widths(self):
        """Raises a `ValueError` unless the layers can have these widths."""
        if len(self.layer_widths) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_widths` has the widths of {len(self.layer_widths)} layers, but `num_hidden_layers` is "
                f"{self.num_hidden_layers}; give one pair of heads and neurons for each layer."
            )
        for index, widths in enumerate(self.layer_widths):
            if len(widths) != 2 or not all(type(width) is int for width in widths):
                raise ValueError(
                    f"`layer_widths` of layer {index} is {widths}, but must be two whole numbers: its attention heads "
                    "and its feed-forward neurons."
                )
            heads, neurons = widths
            if not 0 <= heads <= self.num_attention_heads:
                raise ValueError(
                    f"`layer_widths` gives layer {index} {heads} attention heads; it can have 0 to "
                    f"{self.num_attention_heads} (`num_attention_heads`)."
                )
            if not 1 <= neurons <= self.intermediate_size:
                raise ValueError(
                    f"`layer_widths` gives layer {index} {neurons} feed-forward neurons; it can have 1 to "
                    f"{self.intermediate_size} (`intermediate_size`)."
                )


__all__ = ["PrunedBertConfig"]
