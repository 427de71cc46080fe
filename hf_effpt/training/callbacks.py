"""The callbacks of a run: one moves clock and methods forward, the other shows how far the clock is."""

from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback

from .checkpoints import identity_of
from .schedule import renew

if TYPE_CHECKING:
    from .trainer import EffptTrainer


class ClockCallback(TrainerCallback, ExportableState):
    """Runs the methods at the two moments at which a model may change, and the clock between them.

    Its state, the totals of the clock, is saved with every checkpoint in `trainer_state.json`.
    """

    def __init__(self, trainer: "EffptTrainer") -> None:
        self.trainer = trainer

    def state(self) -> dict[str, Any]:
        trainer = self.trainer
        own = {"rows": trainer.rows_seen, "data": identity_of(trainer.train_dataset), "costs": trainer.costs}
        own |= {"prepaid": trainer.prepaid, "method_flops": trainer.method_flops}
        own["bias_correction"] = trainer.args.bias_correction  # which the optimizer's state is made for
        return {"args": {}, "attributes": trainer.clock.as_dict() | own}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.timekeeper.start()
        self.trainer.meter.reset()
        self._fraction = self.trainer.clock.fraction

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        for method in trainer.methods:
            with trainer.method_cost(method):
                method.schedule(trainer.model.backbone, state.global_step, trainer.clock.fraction, args.seed)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.meter.begin("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.meter.end("optimizer")
        self.trainer.charge_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        rows = len(trainer.train_dataset)
        state.epoch = trainer.rows_seen / rows
        if (
            trainer.rows_seen // rows > (trainer.rows_seen - trainer.step_rows_seen) // rows
            and not trainer.clock.finished
        ):
            self.on_pass_end(args, control)
        if self._is_due(args.eval_strategy, args.eval_steps):
            control.should_evaluate = True
        if trainer.methods:
            self.advance_methods(state.global_step)
        if trainer.clock.finished:
            trainer.timekeeper.settle()
            control.should_training_stop = True
            control.should_save = control.should_save or str(args.save_strategy.value) != "no"
            control.should_log = True

    def advance_methods(self, step: int) -> None:
        """Lets methods change the model; what rests on its parameters or its ledger follows."""
        trainer, config = self.trainer, self.trainer.model.config
        run, events, changed = trainer.live_run(), config.events, False
        for method in trainer.methods:
            with trainer.method_cost(method), trainer.counting(method, "advance"):
                changed |= method.advance(trainer.model.backbone, step, trainer.clock.fraction, run)
        trainer.charge_between_steps()
        if changed:
            trainer.model.keep_snapshot()
            trainer.refresh_optimizer()
        if config.events is not events:
            renew(trainer.lr_scheduler)  # an event may ask for a second warm-up, and the schedule was read before it

    def _is_due(self, strategy: Any, steps: float | None) -> bool:
        """Whether one more of these shares of the budget is spent; of a budget in steps, the stock Trainer knows."""
        clock, before = self.trainer.clock, self._fraction
        self._fraction = clock.fraction
        if strategy != "steps" or steps is None or steps >= 1 or clock.unit == "steps" or clock.finished:
            return False
        return int(clock.fraction / steps) > int(before / steps)

    @staticmethod
    def on_pass_end(args: Any, control: Any) -> None:
        """To the stock Trainer the run is one endless epoch; what is due once an epoch is due after each pass."""
        control.should_log = control.should_log or args.logging_strategy == "epoch"
        control.should_evaluate = control.should_evaluate or args.eval_strategy == "epoch"
        control.should_save = control.should_save or args.save_strategy == "epoch"


class ClockProgress(ProgressCallback):
    """A progress bar of the budget, since the number of steps is not known ahead."""

    def __init__(self, trainer: "EffptTrainer") -> None:
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
