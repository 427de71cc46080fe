"""Registers the training models with the Auto classes: `AutoModel…from_pretrained` finds them by `model_type`."""

import transformers
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining

from . import (
    bert,
    electra,
    families,
    kin,
    mcbert,
    modern_electra,
    modernbert,
    pruned_bert,
    pruned_modernbert,
    replaced_mlm,
)
from .pruned_bert.configuration_pruned_bert import HEADS


def register_auto() -> None:
    """Registers every configuration and its models; repeated calls change nothing."""
    for module, prefix in (
        (bert, "EffptBert"),
        *((families, prefix) for prefix in families.FAMILIES),
        (electra, "EffptElectra"),
        (mcbert, "McBert"),
        (modernbert, "EffptModernBert"),
        (modern_electra, "ModernElectra"),
        (modern_electra, "ModernMcBert"),
        *((kin, f"Effpt{name}") for name in kin.NAMES),
        (pruned_bert, "PrunedBert"),
        (pruned_modernbert, "PrunedModernBert"),
    ):
        config_class = getattr(module, f"{prefix}Model").config_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class, head in HEADS.items():
            model_class = getattr(module, f"{prefix}{head}", None)
            if model_class is not None:
                getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
    joint = electra.ElectraForJointPreTraining, modern_electra.ModernElectraForJointPreTraining
    predicting = replaced_mlm.ElectraForReplacedMaskedLM, modern_electra.ModernElectraForReplacedMaskedLM
    choosing = mcbert.McBertForPreTraining, modern_electra.ModernMcBertForPreTraining
    for model_class in (*joint, *choosing):
        AutoModelForPreTraining.register(model_class.config_class, model_class, exist_ok=True)
    for model_class in (*predicting, *choosing):
        AutoModelForMaskedLM.register(model_class.config_class, model_class, exist_ok=True)


register_auto()
