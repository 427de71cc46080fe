"""Configuration of a ModernBERT with narrower layers than stock ones; saved beside the weights."""

from transformers import ModernBertConfig

HEADS = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForMultipleChoice": "ForMultipleChoice",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}
AUTO_MAP = {
    "AutoConfig": "configuration_pruned_modernbert.PrunedModernBertConfig",
    **{auto_class: f"modeling_pruned_modernbert.PrunedModernBert{head}" for auto_class, head in HEADS.items()},
}


class PrunedModernBertConfig(ModernBertConfig):
    """Configuration of a ModernBERT with its own number of heads and gated neurons in each layer.

    The size of a head is `hidden_size / num_attention_heads`, also where heads were removed.

    Args:
        layer_widths (`list[list[int]]`, *optional*): number of attention heads, from 0 to `num_attention_heads`, and
            of feed-forward neurons, from 1 to `intermediate_size`, of every layer; by default the largest.

    Raises:
        ValueError: if `layer_widths` has another length than `num_hidden_layers`, or a width is out of range.
    """

    model_type = "pruned_modernbert"
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
        most = (self.num_attention_heads, self.intermediate_size)
        possible = len(self.layer_widths) == self.num_hidden_layers and all(
            len(widths) == 2
            and all(type(width) is int for width in widths)
            and 0 <= widths[0] <= most[0]
            and 1 <= widths[1] <= most[1]
            for widths in self.layer_widths
        )
        if not possible:
            raise ValueError(
                f"`layer_widths` is {self.layer_widths}, but must give each of {self.num_hidden_layers} layers two "
                f"whole numbers: 0 to {most[0]} attention heads (`num_attention_heads`), and 1 to {most[1]} "
                "feed-forward neurons (`intermediate_size`)."
            )


__all__ = ["PrunedModernBertConfig"]
