"""The classes of each backbone and pre-training objective."""

from typing import Any

from hf_effpt.core.objectives import objective_of

from .bert import EffptBertForMaskedLM
from .electra import ElectraForJointPreTraining
from .mcbert import McBertForPreTraining
from .modern_electra import (
    ModernElectraForJointPreTraining,
    ModernElectraForReplacedMaskedLM,
    ModernMcBertForPreTraining,
)
from .modernbert import EffptModernBertForMaskedLM
from .replaced_mlm import ElectraForReplacedMaskedLM

BACKBONES = ("bert", "modernbert")
# Training models by objective, of the shapes of BERT and of ModernBERT.
CLASSES: dict[str, tuple[Any, Any]] = {
    "mlm": (EffptBertForMaskedLM, EffptModernBertForMaskedLM),
    **dict.fromkeys(("electra", "electra_15"), (ElectraForJointPreTraining, ModernElectraForJointPreTraining)),
    **dict.fromkeys(("replace_mlm", "all_tokens_mlm"), (ElectraForReplacedMaskedLM, ModernElectraForReplacedMaskedLM)),
    "mcbert": (McBertForPreTraining, ModernMcBertForPreTraining),
}
MASKED_LMS: dict[str, Any] = dict(zip(BACKBONES, CLASSES["mlm"], strict=True))


def config_for(objective: str, backbone: str = "bert", **settings: Any) -> Any:
    """The configuration of a new training model with an objective of `CLASSES` and a backbone of `BACKBONES`.

    `settings` are arguments of the configuration class, which raises an `EffptError` for an invalid one.
    """
    if objective != "mlm":
        settings["objective"] = objective
        if backbone == "bert":
            settings.setdefault("embedding_size", settings["hidden_size"])
    return CLASSES[objective][BACKBONES.index(backbone)].config_class(**settings)


def model_for(config: Any) -> Any:
    """A new training model with this configuration, for its objective."""
    kinds = CLASSES[objective_of(config)]
    return next(kind for kind in kinds if isinstance(config, kind.config_class))(config)


def trainable_from(stock_class: str) -> Any:
    """The training class of a masked language model by the name of its stock class; `None` if there is none."""
    return next((cls for cls in MASKED_LMS.values() if cls.stock_class.__name__ == stock_class), None)


def word_predictors(model: Any) -> list[Any]:
    """A training model and, if there is one, its generator: the parts that may have a head over the vocabulary."""
    generator = getattr(model, "generator", None)
    return [model] if generator is None else [model, generator]
