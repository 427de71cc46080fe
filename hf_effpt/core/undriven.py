"""A warning for a model whose methods no [`EffptTrainer`] runs, so that they do nothing, or less than they should."""

import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)
_WATCH = "_watch"  # attribute of the model


def watch(model: Any) -> None:
    """Has `model` warn once if it is trained before [`release`]."""
    if _WATCH not in model.__dict__:
        model.__dict__[_WATCH] = model.register_forward_pre_hook(_warn)


def release(model: Any) -> None:
    """Tells `model` that its methods are run."""
    if (hook := model.__dict__.pop(_WATCH, None)) is not None:
        hook.remove()


def _warn(model: Any, inputs: Any) -> None:
    if model.training and torch.is_grad_enabled():
        release(model)
        logger.warning(
            "The methods of this model (%s) are run by `EffptTrainer`; in another training loop, such as the stock "
            "`Trainer`, they do nothing, or less than they should. Use `EffptTrainer`, or export the model first.",
            ", ".join(method.name for method in model.methods),
        )
