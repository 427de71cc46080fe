"""The classes of each backbone and pre-training objective."""

from typing import Any

from hf_effpt.core.objectives import objective_of

from .bert import EffptBertForMaskedLM
from .electra import ElectraForJointPreTraining
from .mcbert import McBertForPreTraining
from .modernbert import EffptModernBertForMaskedLM
from .replaced_mlm import ElectraForReplacedMaskedLM

MASKED_LMS: dict[str, Any] = {"bert": EffptBertForMaskedLM, "modernbert": EffptModernBertForMaskedLM}  # by backbone
CLASSES: dict[str, Any] = {  # objective -> training model of the shape of a BERT
    "mlm": EffptBertForMaskedLM,
    **dict.fromkeys(("electra", "electra_15"), ElectraForJointPreTraining),
    **dict.fromkeys(("replace_mlm", "all_tokens_mlm"), ElectraForReplacedMaskedLM),
    "mcbert": McBertForPreTraining,
}


def config_for(objective: str, backbone: str = "bert", **settings: Any) -> Any:
    """The configuration of a new training model with an objective and a backbone, keys of the tables above.

    `settings` are arguments of the configuration class, which raises an `EffptError` for an invalid one.
    """
    if objective == "mlm":
        return MASKED_LMS[backbone].config_class(**settings)
    settings["objective"] = objective
    settings.setdefault("embedding_size", settings["hidden_size"])
    return CLASSES[objective].config_class(**settings)


def model_for(config: Any) -> Any:
    """A new training model with this configuration, for its objective."""
    masked = next((cls for cls in MASKED_LMS.values() if isinstance(config, cls.config_class)), None)
    return (masked or CLASSES[objective_of(config)])(config)


def trainable_from(stock_class: str) -> Any:
    """The training class of a masked language model by the name of its stock class; `None` if there is none."""
    return next((cls for cls in MASKED_LMS.values() if cls.stock_class.__name__ == stock_class), None)


def word_predictors(model: Any) -> list[Any]:
    """A training model and, if there is one, its generator: the parts that may have a head over the vocabulary."""
    generator = getattr(model, "generator", None)
    return [model] if generator is None else [model, generator]
