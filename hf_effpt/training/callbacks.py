"""Hooks of the methods around a step; callbacks advance the clock, and show and log what is spent."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import transformers.trainer
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback

from hf_effpt.core.context import RunContext
from hf_effpt.core.freezing import freeze
from hf_effpt.core.ledger import rewarmed
from hf_effpt.core.row_method import RowMethod

from .optimization import renew
from .phases import identity_of_run
from .resuming import identity_of
from .stopping import NoEnd

UNITS = {"tokens", "flops", "seconds", "reference_seconds", "joules"}  # of the clock, in the logs of losses


class ClockCallback(TrainerCallback, ExportableState):
    """Charges the clock for each step and lets the methods change the model after it.

    Checkpoints keep its state, the totals of the clock, in `trainer_state.json`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def state(self) -> dict[str, Any]:
        trainer = self.trainer
        stream = trainer.stream
        own = {"rows": stream.rows_seen, "phase": stream.phase, "data": identity_of_run(trainer)}
        own |= identity_of(trainer.args) | {"parts": trainer.saver.parts, "skipped": trainer.guard.record()}
        return {"args": {}, "attributes": trainer.cost.totals() | own}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # of a resumed run, which has loaded those of its checkpoint
        self.trainer.cost.timekeeper.start()
        self.trainer.cost.meter.reset()
        self._fraction = self.trainer.clock.fraction

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.cost.meter.begin("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.cost.meter.end("optimizer")
        self.trainer.charge_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, stream = self.trainer, self.trainer.stream
        rows = len(stream.dataset)
        state.epoch = stream.rows_seen / rows
        passes, before = stream.rows_seen // rows, (stream.rows_seen - stream.step_rows_seen) // rows
        if passes > before and not trainer.clock.finished:  # the stock Trainer sees one endless epoch
            control.should_log = control.should_log or args.logging_strategy == "epoch"
            due = args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
            control.should_evaluate = control.should_evaluate or due
            control.should_save = control.should_save or args.save_strategy == "epoch"
        if self._is_due(args.eval_strategy, args.eval_steps) and args.eval_delay <= state.global_step:
            control.should_evaluate = True
        if trainer.methods:
            self.advance_methods()
        if trainer.average.settings is not None:
            trainer.average.update()
        stopper = trainer.stopper
        if (stopper.asked or stopper.group) and stopper.agreed() and not trainer.clock.finished:
            stopper.pause(control)
        if trainer.clock.finished:
            trainer.cost.timekeeper.settle()
            control.should_training_stop = True
            # Once an epoch, or a best one, is saved when the epoch has ended and was evaluated.
            control.should_save = control.should_save or args.save_strategy == "steps"
            control.should_log = True

    def advance_methods(self) -> None:
        """Lets methods change the model, then updates snapshot, optimizer and learning rate."""
        trainer, config = self.trainer, self.trainer.model.config
        context, events, changed = live_context(trainer), config.events, False
        for method in trainer.methods:
            own = trainer.selection.count_flops(method, "advance") if isinstance(method, RowMethod) else nullcontext()
            with trainer.cost.method_time(method), own:
                changed |= method.advance(trainer.model.backbone, context)
        trainer.cost.charge_between_steps()
        if changed:
            trainer.model.keep_snapshot()
            trainer.refresh_optimizer()
        if changed or config.events is not events:
            trainer.average.restart()
        if config.events is not events:
            renew(trainer.lr_scheduler)  # an event may start a second warm-up

    def _is_due(self, strategy: Any, steps: float | None) -> bool:
        """Returns `True` if another `steps`, a fraction of the budget, is spent; `False` for step budgets."""
        clock, before = self.trainer.clock, self._fraction
        self._fraction = clock.fraction
        if strategy != "steps" or steps is None or steps >= 1 or clock.unit == "steps" or clock.finished:
            return False
        return int(clock.fraction / steps) > int(before / steps)


class ClockProgress(ProgressCallback):
    """Progress bar of the budget spent, since the number of steps is not known ahead."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            clock = self.trainer.clock
            self.training_bar = tqdm(
                total=1000,
                dynamic_ncols=True,
                mininterval=1.0,
                desc=f"training for {clock.budget:g} {clock.unit}",
                bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
            )
            self._show()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show()

    def _show(self) -> None:
        if self.training_bar is not None:
            self.training_bar.update(int(1000 * self.trainer.clock.fraction) - self.training_bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            shown = {"step": state.global_step, "loss": f"{logs['loss']:.3f}"}
            if "tokens_per_second" in logs:
                shown["tokens/s"] = f"{logs['tokens_per_second']:,.0f}"
            self.training_bar.set_postfix(shown)


class ClockAxes(TrainerCallback):
    """Writes losses to TensorBoard once more by what is spent, since its axis has whole steps only."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        for callback in self.trainer.callback_handler.callbacks:
            if (writer := getattr(callback, "tb_writer", None)) is not None:
                for unit in UNITS & logs.keys():
                    for name in {"loss", "eval_loss"} & logs.keys():
                        writer.add_scalar(f"by_{unit}/{name}", logs[name], int(logs[unit]))


def add_callbacks(trainer: Any) -> None:
    """Adds the callbacks of the clock to an [`EffptTrainer`]; its bar takes the place of the stock one."""
    trainer.callback_handler.callbacks.insert(0, ClockCallback(trainer))
    if trainer.pop_callback(transformers.trainer.DEFAULT_PROGRESS_CALLBACK) is not None:  # another in a notebook
        trainer.add_callback(ClockProgress(trainer))
    trainer.add_callback(NoEnd(trainer))  # after that of the stock Trainer
    trainer.add_callback(ClockAxes(trainer))  # after that of TensorBoard, which opens its file


def schedule_methods(trainer: Any) -> RunContext:
    """Lets methods decide what runs and learns in the coming step of an [`EffptTrainer`]; returns its context."""
    backbone, step, seed = trainer.model.backbone, trainer.state.global_step, trainer.args.seed
    context = RunContext(step, trainer.clock.fraction, seed, model=trainer.model)
    frozen: list[nn.Parameter] = []
    for method in trainer.methods:
        with trainer.cost.method_time(method):
            method.schedule(backbone, context)
            frozen += method.frozen(backbone, context)
    freeze(backbone, frozen)
    return context


def live_context(trainer: Any) -> RunContext:
    """Builds the context of `advance` from an [`EffptTrainer`], between two of its steps."""
    trainer.cost.forget_counts()

    def mean_loss() -> Tensor:
        loss = trainer.step_loss
        return loss if trainer.args.world_size == 1 else trainer.accelerator.reduce(loss, "mean")

    def draw_batches(number: int) -> Iterator[dict[str, Tensor]]:
        for batch in trainer.stream.draw(number, trainer.state.global_step):
            if trainer.args.charge_methods:
                trainer.cost.step_tokens += batch["input_ids"].numel()
            yield batch

    return RunContext(
        trainer.state.global_step,
        trainer.clock.fraction,
        trainer.args.seed,
        model=trainer.model,
        optimizer=getattr(trainer.optimizer, "optimizer", trainer.optimizer),  # Accelerate wraps it
        loss=mean_loss,
        flops=trainer.clock.flops,
        draw_batches=draw_batches,
        charged=partial(trainer.cost.charged, trainer.model),
        warming_up=trainer.trained_share < trainer.warmup or rewarmed(trainer.model.config, trainer.clock.steps) < 1,
    )
