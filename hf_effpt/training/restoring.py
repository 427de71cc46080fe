"""Models given back from checkpoints: that of a resumed run, and the one with the best metric, where a run ends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from hf_effpt.core.errors import EffptError
from hf_effpt.core.undriven import release
from hf_effpt.hub.folders import step_of

from .checkpoints import STATE, load_training_model
from .checks import check_adapter
from .losses import smooth_in_model

logger = logging.getLogger(__name__)


def restore(trainer: Any, checkpoint: Path) -> None:
    """Has the trainer hold the model of a checkpoint, in the shape that it had there."""
    trainer.model = load_training_model(trainer.model, checkpoint).to(trainer.args.device)
    trainer.model_wrapped, trainer.optimizer = trainer.model, None
    release(trainer.model)
    trainer.average.begin(checkpoint)
    smooth_in_model(trainer)


def finished(trainer: Any, checkpoint: Path) -> TrainOutput:
    """Has the trainer stand at the end of its run, which the checkpoint holds; returns what `train` returns."""
    clock = trainer.clock
    logger.warning(
        "%s has spent the whole budget of %g %s, so nothing is trained; a larger `training.budget` goes on.",
        checkpoint, clock.budget, clock.unit,
    )  # fmt: skip
    trainer.create_optimizer_and_scheduler(1)  # at the final learning rate
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        load_best(trainer)
    return TrainOutput(trainer.state.global_step, 0.0, {})


def check_run(trainer: Any) -> None:
    """Raises `EffptError` if a metric that chooses the best model, or stops early, is never computed.

    Or if the model has got an adapter since the trainer was made.
    """
    check_adapter(trainer.model)
    args, metric = trainer.args, trainer.args.metric_for_best_model
    if metric is not None and trainer.compute_metrics is None and not metric.endswith("loss"):
        raise EffptError(
            f"`training.metric_for_best_model` is `{metric}`, and evaluation computes the loss only; set it to "
            "`loss`, or give the trainer a `compute_metrics`."
        )
    if any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks):
        for name, missing in (("metric_for_best_model", None), ("eval_strategy", "no")):
            if getattr(args, name) == missing:
                raise EffptError(
                    f"`EarlyStoppingCallback` stops when a metric no longer improves, and `training.{name}` is "
                    f"{'left out' if missing is None else missing}; set it, for example to "
                    f"{'loss' if missing is None else 'steps'}."
                )


def name_best(trainer: Any, run: Path) -> None:
    """Corrects the folder of the best checkpoint in the state, if it is the one being written under another name."""
    state, staging = trainer.state, trainer.saver.staging
    if state.best_model_checkpoint and Path(state.best_model_checkpoint).parent == staging:
        folder = Path(state.best_model_checkpoint).name
        state.best_model_checkpoint = str(run / folder)
        if trainer.args.should_save:
            state.save_to_json(str(staging / folder / STATE))


def load_best(trainer: Any) -> None:
    """Has the trainer hold the model of the best checkpoint, in the shape that it had there, and evaluates it.

    The clock stays: finding it has cost the whole run. A branch has no best checkpoint.
    """
    if trainer.branches.current is not None:
        return
    checkpoint = Path(trainer.state.best_model_checkpoint)
    if not checkpoint.is_dir():  # the run folder has moved since
        checkpoint = Path(trainer.args.output_dir, checkpoint.name)
    trainer.accelerator.wait_for_everyone()  # the main process may have to finish it
    restore(trainer, checkpoint)
    trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # for mixed precision
    trainer.callback_handler.model = trainer.model
    if trainer.neftune_noise_alpha is not None:  # which the stock Trainer takes away at the end
        trainer.model.get_input_embeddings().neftune_noise_alpha = trainer.neftune_noise_alpha
    step, metric = step_of(checkpoint), trainer.args.metric_for_best_model
    evaluated = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = [one[evaluated] for one in trainer.state.log_history if one["step"] == step and evaluated in one]
    trainer.facts["best"] = {"step": step, metric: values[0] if values else None}
    trainer.evaluate()


@contextmanager
def for_later(trainer: Any, trial: Any) -> Iterator[None]:
    """Context of the end of a run: one that is paused saves a checkpoint, unless it just has, and keeps its model.

    It goes on from there, so that the best checkpoint is not given back yet.
    """
    paused = trainer.stopper.paused
    if paused:
        trainer._save_checkpoint(trainer.model, trial)
        trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    best = trainer.state.best_model_checkpoint
    trainer.state.best_model_checkpoint = None if paused else best
    try:
        yield
    finally:
        trainer.state.best_model_checkpoint = best
