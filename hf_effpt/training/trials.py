"""Models made by a `model_init`: one for each run, such as the trials of `hyperparameter_search`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import set_seed

from hf_effpt.core.errors import EffptError


def first_model(trainer: Any, model: Any, args: Any) -> Any:
    """Returns `model`, or that of the trainer's `model_init`; raises `EffptError` for both or none."""
    if (model is None) == (trainer.model_init is None):
        given = "both" if model is not None else "none"
        raise EffptError(f"A trainer needs a `model` or a `model_init`, and {given} is given; give one of them.")
    if model is None:
        set_seed(args.seed)
        model = trainer.call_model_init()
    return model


@contextmanager
def own_model(trainer: Any, trial: Any) -> Iterator[None]:
    """Context of a run: with a `model_init` it has a fresh model, in the way that `trial` sets the arguments.

    The stock Trainer would make one in the midst of the run, after its rows and methods have begun.
    """
    make = trainer.model_init
    if make is None:
        yield
        return
    trainer._hp_search_setup(trial)
    trainer.args.check()
    set_seed(trainer.args.seed)
    trainer.take(trainer.call_model_init(trial))
    trainer.model_init = None
    try:
        yield
    finally:
        trainer.model_init = make
