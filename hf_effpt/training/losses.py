"""Arguments of the stock Trainer that change the loss: which of them a model can follow, and how."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import objective_of
from hf_effpt.core.token_losses import observers_of

from .predictions import check_predicts


def check_losses(model: Any, args: Any, given: Mapping[str, Any]) -> None:
    """Raises `EffptError` if arguments change the loss of a pre-training model, or read it, in a way that it has not.

    `given` are further arguments of the trainer by name.
    """
    if not model.pretrains:
        return
    function = given.get("compute_loss_func")
    changes = {"label_smoothing_factor": args.label_smoothing_factor, "compute_loss_func": function}
    check_changes(objective_of(model.config), changes)
    if function is not None:
        _check_function(model, args)
    for name in ("compute_metrics", "preprocess_logits_for_metrics"):
        if given.get(name) is not None:
            check_predicts(model, f"`{name}`")
    if args.label_names not in (None, ["labels"]):
        raise EffptError(
            f"`training.label_names` is {args.label_names}, but the labels of a `{type(model).__name__}` are called "
            "`labels`; leave it out."
        )


def check_changes(objective: str, changes: Mapping[str, Any]) -> None:
    """Raises `EffptError` if arguments that are set change the one loss of a model whose objective has two."""
    for name, value in changes.items():
        if value and objective != "mlm":
            raise EffptError(
                f"`{name}` changes the loss of a model that has one, over its labels, but with the objective "
                f"`{objective}` a generator and the model it trains have a loss each; leave it out, or use `mlm`."
            )


def _check_function(model: Any, args: Any) -> None:
    """Raises `EffptError` if something needs the model's own loss, which `compute_loss_func` replaces."""
    if args.label_smoothing_factor:
        raise EffptError(
            f"`label_smoothing_factor` is {args.label_smoothing_factor}, but `compute_loss_func` replaces the loss "
            "that it smooths; leave one of them out."
        )
    if observing := observers_of(model.backbone):
        raise EffptError(
            f"`{observing[0]}` reads the model's loss token by token, and `compute_loss_func` replaces that loss; "
            "leave one of them out."
        )
    if measuring := [method.name for method in model.methods if method.measures_loss]:
        raise EffptError(
            f"`{measuring[0]}`, as set, decides by the loss that the model computes itself, and `compute_loss_func` "
            "replaces that loss; leave one of them out, or have it decide by something else."
        )
    if args.clock is not None and args.clock.unit == "reference_seconds":
        raise EffptError(
            f"The budget {args.budget} is reference time, of which the table has no time for a `compute_loss_func`; "
            "leave it out, or give tokens, flops or time."
        )


def smooth_in_model(trainer: Any) -> None:
    """Has a pre-training model smooth its own loss, since the stock smoother needs logits of every position."""
    if trainer.args.label_smoothing_factor and trainer.model.pretrains:
        trainer.label_smoother = None
        trainer.model.label_smoothing = trainer.args.label_smoothing_factor


def inputs_of(trainer: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that the model computes a training step from: a `compute_loss_func` keeps the labels to itself."""
    if trainer.compute_loss_func is None:
        return batch
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
