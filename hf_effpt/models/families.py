"""The named classes: BERT models and configurations with one method switched on; `families.pyi` has their types."""

from huggingface_hub.dataclasses import strict

from .bert import EffptBertForMaskedLM, EffptBertForSequenceClassification, EffptBertModel
from .configuration_effpt import EffptBertConfig

# prefix of the class names -> `model_type`, method, how the model is trained, paper
FAMILIES = {
    "CompressibleBert": ("compressible_bert", "compress", "trained large and then compressed", "Li et al., 2020"),
    "EarlyBert": ("early_bert", "earlybert", "cut to an early-bird ticket in training", "Chen et al., 2021"),
    "LayerDropBert": ("layerdrop_bert", "layerdrop", "trained with LayerDrop", "Fan et al., 2020"),
    "LayerSkipBert": ("layerskip_bert", "layerskip", "with learned layer skipping", "Wang et al., 2019; experimental"),
    "LotteryBert": ("lottery_bert", "lottery", "cut to a ticket of single weights in rounds", "Chen et al., 2020"),
    "SelectionBert": ("selection_bert", "selection", "trained on selected rows", "Jiang et al., 2019"),
    "StackableBert": ("stackable_bert", "stacking", "grown by progressive stacking", "Gong et al., 2019"),
    "TNFBert": ("tnf_bert", "tnf", "trained with notes of rare words", "Wu et al., 2021"),
}
PARTS = {
    "Model": (EffptBertModel, "BERT encoder"),
    "ForMaskedLM": (EffptBertForMaskedLM, "BERT with a masked-language-modelling head"),
    "ForSequenceClassification": (EffptBertForSequenceClassification, "BERT with a sequence classification head"),
}


def _add_class(name: str, base: type, doc: str, **attributes: object) -> type:
    """A subclass of `base`, added to this module, where pickle and Auto classes find it."""
    globals()[name] = type(name, (base,), {"__module__": __name__, "__doc__": doc, **attributes})
    return globals()[name]


for _prefix, (_model_type, _method, _trained, _paper) in FAMILIES.items():
    _config = _add_class(
        f"{_prefix}Config",
        EffptBertConfig,
        f"Configuration of a BERT {_trained} ({_paper}).",
        model_type=_model_type,
        default_methods={_method: {}},
    )
    strict(_config)
    for _part, (_base, _what) in PARTS.items():
        _add_class(f"{_prefix}{_part}", _base, f"{_what}, {_trained}.", config_class=_config)

__all__ = [f"{prefix}{part}" for prefix in FAMILIES for part in ("Config", *PARTS)]
