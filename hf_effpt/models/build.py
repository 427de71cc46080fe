"""Which classes a pre-training objective has."""

import importlib
from typing import Any

from hf_effpt.core.objectives import objective_of

# objective -> module and names of the classes of configuration and training model
CLASSES: dict[str, tuple[str, str, str]] = {
    "mlm": ("bert", "EffptBertConfig", "EffptBertForMaskedLM"),
    **dict.fromkeys(("electra", "electra_15"), ("electra", "EffptElectraConfig", "ElectraForJointPreTraining")),
    **dict.fromkeys(
        ("replace_mlm", "all_tokens_mlm"), ("replaced_mlm", "EffptElectraConfig", "ElectraForReplacedMaskedLM")
    ),
    "mcbert": ("mcbert", "McBertConfig", "McBertForPreTraining"),
}


def _class_of(objective: str, part: int) -> Any:
    module = importlib.import_module(f"hf_effpt.models.{CLASSES[objective][0]}")
    return getattr(module, CLASSES[objective][part])


def config_for(objective: str, **settings: Any) -> Any:
    """The configuration of a new training model.

    Args:
        objective (`str`): a key of `OBJECTIVES`.
        **settings: of the configuration class.

    Raises:
        EffptError: for an impossible setting.
    """
    config_class = _class_of(objective, 1)
    if objective != "mlm":
        settings["objective"] = objective
        settings.setdefault("embedding_size", settings["hidden_size"])
    return config_class(**settings)


def model_for(config: Any) -> Any:
    """A new training model with this configuration, for its objective."""
    return _class_of(objective_of(config), 2)(config)
