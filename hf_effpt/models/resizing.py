"""Tables of a training model that change their size, and what methods hold of them."""

from typing import Any

from hf_effpt.core.errors import EffptError


def refuse_snapshot(model: Any, what: str) -> None:
    """Raises an `EffptError` if a snapshot of the weights is taken: it has rows for the present tables only."""
    if model.snapshot is not None and model.snapshot.is_taken:
        needing = next(method.name for method in model.methods if method.needs_snapshot)
        raise EffptError(
            f"`{needing}` may rewind the weights to those that a run began with, whose tables have the present size: "
            f"change {what} before the run, or in the export (`effpt export`)."
        )


def resize_parts(model: Any) -> None:
    """Has modules of methods that `resize_vocabulary` do so, and gives a snapshot that is not taken the new shapes."""
    for module in model.modules():
        if (resize_vocabulary := getattr(module, "resize_vocabulary", None)) is not None:
            resize_vocabulary(model.config.vocab_size)
    if model.snapshot is not None and not model.snapshot.is_taken:
        model.snapshot = None
        model.keep_snapshot()
