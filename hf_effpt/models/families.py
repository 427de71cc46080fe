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


def _add_family(prefix: str, model_type: str, method: str, trained: str, paper: str) -> None:
    doc = f"Configuration of a BERT {trained} ({paper})."
    config = strict(
        _add_class(f"{prefix}Config", EffptBertConfig, doc, model_type=model_type, default_methods={method: {}})
    )
    for part, (base, what) in PARTS.items():
        _add_class(f"{prefix}{part}", base, f"{what}, {trained}.", config_class=config)


for _prefix, _family in FAMILIES.items():
    _add_family(_prefix, *_family)

__all__ = [f"{prefix}{part}" for prefix in FAMILIES for part in ("Config", *PARTS)]
