"""The classes of each pre-training objective."""

from typing import Any

from hf_effpt.core.objectives import objective_of

from .bert import EffptBertForMaskedLM
from .electra import ElectraForJointPreTraining
from .mcbert import McBertForPreTraining
from .replaced_mlm import ElectraForReplacedMaskedLM

CLASSES: dict[str, Any] = {  # objective -> training model
    "mlm": EffptBertForMaskedLM,
    **dict.fromkeys(("electra", "electra_15"), ElectraForJointPreTraining),
    **dict.fromkeys(("replace_mlm", "all_tokens_mlm"), ElectraForReplacedMaskedLM),
    "mcbert": McBertForPreTraining,
}


def config_for(objective: str, **settings: Any) -> Any:
    """The configuration of a new training model with an objective, a key of `CLASSES`.

    `settings` are arguments of the configuration class, which raises an `EffptError` for an invalid one.
    """
    if objective != "mlm":
        settings["objective"] = objective
        settings.setdefault("embedding_size", settings["hidden_size"])
    return CLASSES[objective].config_class(**settings)


def model_for(config: Any) -> Any:
    """A new training model with this configuration, for its objective."""
    return CLASSES[objective_of(config)](config)
