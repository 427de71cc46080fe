"""Models made by a `model_init`, one for each run, and the trials of `hyperparameter_search`, of which some fail."""

import importlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import set_seed
from transformers.trainer_utils import HPSearchBackend

from hf_effpt.core.errors import EffptError, RunStopped

logger = logging.getLogger(__name__)


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


@contextmanager
def failing_alone(trainer: Any, trial: Any) -> Iterator[None]:
    """Context of a run: an `EffptError` of a `trial`, as of one that diverges, ends that trial and not the search.

    Optuna then has it as pruned, and tries other settings; its attribute `error` says why. Other backends get the
    error itself: Weights & Biases notes a failed run, and Ray reports it at the end (`raise_on_failed_trial=False`
    has it leave the trial out). A signal ends the whole search.
    """
    try:
        yield
    except RunStopped:
        raise
    except EffptError as error:
        if trial is None or trainer.hp_search_backend != HPSearchBackend.OPTUNA:
            raise
        logger.warning("Trial %d is pruned, and the search goes on: %s", trial.number, error)
        trial.set_user_attr("error", str(error))
        # The next model is made before this one would be replaced.
        trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.clear()
        trainer.objective = math.nan  # of processes that only follow the search; they have no study to tell
        if trainer.args.process_index:
            return
        optuna = importlib.import_module("optuna")  # there is a trial of it, so it is installed
        raise optuna.TrialPruned(str(error)) from error


@contextmanager
def some_trial() -> Iterator[None]:
    """Context of a search; raises `EffptError` if each of its trials has failed, where Optuna finds none to name."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, EffptError) or "No trials are completed" not in str(error):
            raise
        raise EffptError(
            "Each trial of the search has failed, and the log says why; give it another space, such as lower learning "
            "rates."
        ) from error
