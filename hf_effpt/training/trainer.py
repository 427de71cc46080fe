"""`EffptTrainer`: the stock Trainer with a budget clock and methods."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from hf_effpt.core.clock import Clock
from hf_effpt.core.ledger import archive_events, rewarmed, span_of
from hf_effpt.core.method import Method
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.core.row_method import RowMethod, row_methods

from . import carbon, checkpoints, checks, losses, predictions, restoring, rewinding, trials
from .arguments import EffptTrainingArguments
from .averaging import WeightAverage
from .branches import Branches, check_branches
from .callbacks import add_callbacks, schedule_methods
from .cost import CostMeter
from .evaluation_loop import clock_entries, held_out_metrics
from .guard import FiniteGuard
from .optimization import clock_schedule, decaying, make_groups, optimizer_class, point_at
from .phases import check_rows, identity_of_run, phases_of, position_in, ramped
from .preparing import collator_for, compile_layers, prepare_model, share_anew
from .resuming import parts_of, settings_taking_effect
from .row_selection import RowSelection
from .stock_arguments import in_one_line
from .stopping import Stopper
from .stream import TrainingStream

ENDLESS = 2**31 - 1  # number of steps if the clock ends the run


class EffptTrainer(Trainer):
    """Trains a model of this package on a budget, with its methods, and exports a stock model.

    All else is as in [`transformers.Trainer`]. `train(resume_from_checkpoint=…)` continues bit for bit; `save_model()`
    writes the stock model, while `checkpoint-N/` holds the training model. Parts: `cost` ([`CostMeter`]), `stream`
    ([`TrainingStream`]), `selection` ([`RowSelection`]), `saver` ([`Saver`]), `branches` ([`Branches`]),
    `average` ([`WeightAverage`]), `guard` ([`FiniteGuard`]).

    Args:
        model ([`PreTrainedModel`]): training model, such as `EffptBertForMaskedLM`, whose configuration holds the
            methods; or give a `model_init`, which makes one for each run.
        args ([`EffptTrainingArguments`]): arguments with the budget.
        train_dataset: rows from [`pack`], a list of [`Phase`]s with such rows, or any map-style dataset of examples.
        data_collator (*optional*): defaults to [`DataCollatorForMaskedLM`] for a pre-training model with a tokenizer,
            else to the stock Trainer's.

    Raises:
        EffptError: if model, dataset and tokenizer do not fit each other, before any training.
    """

    args: EffptTrainingArguments  # narrower types than in the stock class: all are set once a trainer is made
    accelerator: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any
    eval_dataset: Any

    method: str | None = None  # method that a named subclass adds
    objectives: tuple[str, ...] = tuple(OBJECTIVES)  # supported objectives
    warmup = 0.0  # as a fraction of the budget, set with the schedule

    def __init__(
        self, model: Any = None, args: Any = None, data_collator: Any = None, train_dataset: Any = None,
        eval_dataset: Any = None, processing_class: Any = None, model_init: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.model_init, self.phases, args = model_init, phases_of(train_dataset), copy(args)
        train_dataset, self._given = self.phases[0].rows, kwargs
        checks.check_arguments(args)
        model = trials.first_model(self, model, args)
        data = train_dataset, eval_dataset, processing_class
        prepare_seconds = prepare_model(type(self), model, args, data, kwargs)
        data_collator, self.masking = collator_for(model, data_collator, processing_class, args.seed)
        with carbon.without_stock_tracker(args), in_one_line("Transformers cannot train with these settings"):
            super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        self.model_init = model_init  # which the stock Trainer would call again
        add_callbacks(self)
        restoring.check_run(self)
        self.facts: dict[str, Any] = {}  # further entries of `run.json`
        self._fit_parts(prepare_seconds)

    def take(self, model: Any) -> None:
        """Has the trainer begin anew with another model, which the same parts must fit."""
        data = self.train_dataset, self.eval_dataset, self.processing_class
        prepare_seconds = prepare_model(type(self), model, self.args, data, self._given)
        self.model = self.model_wrapped = model.to(self.args.device)
        self.optimizer = self.lr_scheduler = None
        self._fit_parts(prepare_seconds)

    def _fit_parts(self, prepare_seconds: dict[str, float]) -> None:
        """Makes the parts of a run of the present model; `prepare_seconds` are those of its methods by name."""
        losses.smooth_in_model(self)
        phases = ramped(self.phases, self.args)
        check_rows(phases, self.model, self.args, self.masking is not None)
        self.evaluation: dict[str, Any] | None = None  # last held-out evaluation
        self.step_loss: Any = 0.0  # of the current step, summed over micro-batches
        self.cost = CostMeter(self.args, self.accelerator.autocast)
        self.cost.expect(prepare_seconds, self.model.start_cost, self.accelerator)
        self.stream = TrainingStream(self.args, phases, self.data_collator, keyed=self.masking is not None)
        self.selection = RowSelection(self.stream, self.cost, self.masking, self.processing_class)
        self.saver, self.stopper, self.guard = checkpoints.Saver(self), Stopper(self), FiniteGuard(self)
        self.branches, self.average = Branches(self), WeightAverage(self)
        self.selection.check(self.model, self.row_methods)
        checks.check_body(self.model, self.args)
        self.begin(None)
        checks.check_steps(self.clock, self.methods)

    @property
    def methods(self) -> list[Method]:
        return self.model.methods

    @property
    def row_methods(self) -> list[RowMethod]:
        """Methods that select rows."""
        return row_methods(self.methods)

    @property
    def clock(self) -> Clock:
        return self.cost.clock

    @property
    def step_rows(self) -> int:
        """Rows of an optimizer step, over all micro-batches and processes."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Trains like the stock Trainer; resuming rebuilds the model from the checkpoint's configuration.

        Raises `EffptError` for a checkpoint that is not whole, naming the last whole one; `RunStopped` after a signal.
        """
        restoring.check_run(self)
        with trials.failing_alone(self, trial), trials.own_model(self, trial):
            return self._train(resume_from_checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> TrainOutput:
        if resume_from_checkpoint:
            checkpoint = checkpoints.choose(resume_from_checkpoint, Path(self.args.output_dir))
            self.begin(checkpoints.totals(checkpoint, identity_of_run(self), self.args))
            restoring.restore(self, checkpoint)
            if self.clock.finished:
                return restoring.finished(self, checkpoint)
            resume_from_checkpoint = str(checkpoint)
        else:
            self.begin(None)
            self.average.begin(None)
            checks.check_left(self.clock, self.cost.method_seconds, self.cost.method_flops)
            check_branches(self.args, self.cost.upfront_fraction)
            archive_events(self.model.config)
            if self.model.snapshot is not None:
                self.model.snapshot.take(self.model)
        rewinding.set_later_aside(self, resume_from_checkpoint)
        self.branches.begin()
        if self.args.compile_layers:
            compile_layers(self.model)
        with self.stopper.listening(), carbon.tracking(self.args, self.cost.timekeeper):
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Searches like the stock Trainer. A trial that diverges, or is refused, is pruned, and the search goes on."""
        with trials.some_trial():
            return super().hyperparameter_search(*args, **kwargs)

    def begin(self, totals: dict[str, Any] | None) -> None:
        """Sets clock and rows to zero, or to the totals of a checkpoint."""
        rows = 0 if self.train_dataset is None else len(self.train_dataset)
        steps = max(1, math.ceil(self.args.num_train_epochs * rows / self.step_rows))
        clock = self.args.clock or Clock("steps", steps)
        clock.end = self.branches.current or 1.0
        self.stream.begin(**position_in(totals))
        self.cost.begin(clock, totals)
        self.guard.begin(totals)
        self.saver.begin(parts_of(self.args, totals))

    @property
    def trained_share(self) -> float:
        """Fraction spent of the training part of the budget, which the learning rate follows.

        A method may restart the learning rate within a part of the budget.
        """
        (since, until), clock = span_of(self.model.config), self.cost.clock
        since, until = max(since, self.cost.upfront_fraction), min(until, clock.end)
        return min(1.0, (clock.fraction - since) / (until - since)) if since < until else 1.0

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """Sets one endless epoch; its steps are the budget if that is in steps, else the clock ends the run."""
        steps = int(self.clock.budget) if self.clock.unit == "steps" else ENDLESS
        micro_batches = steps * args.gradient_accumulation_steps
        return 1, steps, len(self.train_dataset), steps * self.step_rows, self.step_rows, micro_batches, steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Creates the stock schedule as a function of the fraction of the budget spent."""
        if self.lr_scheduler is None:
            length = int(self.clock.budget) if self.clock.unit == "steps" else 1_000_000
            self.warmup = self.args.get_warmup_steps(length) / length
            self.lr_scheduler = clock_schedule(
                self.args, optimizer or self.optimizer, lambda: self.trained_share, length,
                lambda: rewarmed(self.model.config, self.clock.steps),
            )  # fmt: skip
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """Returns the stock optimizer, Muon, or AdamW without bias correction."""
        return optimizer_class(args, model)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Stock names, or all with `decay_all`; none of modules with a true `no_weight_decay`, such as gates."""
        return decaying(model, None if self.args.decay_all else super().get_decay_parameter_names(model))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Creates the optimizer, with extra groups for matrices of Muon and for modules with a `learning_rate`.

        Raises `EffptError` if it cannot follow a method that changes the set of parameters.
        """
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            checks.check_optimizer(optimizer, self.methods)
            make_groups(optimizer, self.model)
        return optimizer

    def refresh_optimizer(self) -> None:
        """Points the optimizer at the model's current parameters; those that stay keep their state."""
        live, self.optimizer = self.optimizer, None
        fresh, self.optimizer = self.create_optimizer(), live
        point_at(live, fresh)
        share_anew(self.model_wrapped, self.accelerator)
        self.cost.counter.clear()

    def get_train_dataloader(self) -> Any:
        """Returns an endless loader of micro-batches from the current row."""
        rows, collator = self.train_dataset, self.data_collator  # the user may have replaced both
        if self.masking is None and hasattr(rows, "column_names"):
            rows = self._remove_unused_columns(rows)
        elif self.masking is None:
            collator = self._get_collator_with_removed_columns(collator)
        self.stream.replace(rows, collator)
        return self.stream.loader(may_carry=bool(self.row_methods))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Returns an ordered loader of held-out rows, with the same 15 % of tokens chosen at every call."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.masking is None:
            return super().get_eval_dataloader(eval_dataset)
        return self.stream.held_out(eval_dataset, predictions.held_out_collator(self))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Returns an ordered loader of rows to predict, masked as in [`EffptTrainer.get_eval_dataloader`]."""
        own = self.masking is not None
        return predictions.prediction_loader(self, test_dataset) if own else super().get_test_dataloader(test_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Returns the micro-batches of one optimizer step, on the device, and their number of labels.

        Methods are scheduled first, since rows are selected by what runs in the step.
        """
        run = schedule_methods(self)
        self.stream.enter(run.fraction, self.model)
        with self.cost.meter.measure("data"):
            self.step_loss = 0.0
            if selecting := self.row_methods:
                batches = self.selection.select(self.model, selecting, run, epoch_iterator, num_batches, device)
            else:
                batches = self.stream.take(epoch_iterator, num_batches, device)
            tokens = sum(batch["input_ids"].numel() for batch in batches)
            seen = self.stream.step_rows / (num_batches * self.stream.batch_rows)
            self.cost.step_tokens += round(tokens * seen)
            self.cost.learned_tokens = tokens
            return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Divisors of the step's losses: one number per loss of the model."""
        counts = [self.model.count_items(batch) for batch in batch_samples] if self.model_accepts_loss_kwargs else []
        if not counts or counts[0] is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = torch.stack(counts).sum(dim=0).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.reduce(total)
        return total

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        with self.cost.meter.measure("training_step"):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.cost.charge_micro_batch(self.model, losses.inputs_of(self, inputs))
        self.step_loss = self.step_loss + loss
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        return self.guard.watch(super()._get_grad_norm(*args, **kwargs))

    def floating_point_ops(self, inputs: Any) -> float:
        """Counted FLOPs of the micro-batch just trained on."""
        return self.cost.micro_flops

    def compute_loss(self, model: Any, inputs: Any, return_outputs=False, num_items_in_batch: Any = None) -> Any:
        with self.cost.meter.measure("forward") if model.training else nullcontext():
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            # The Trainer later divides by the accumulation steps, unless the loss is scaled already.
            scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            share = self.current_gradient_accumulation_steps if scaled or self.compute_loss_func else 1
            for method in self.methods:
                if (penalty := method.penalty(self.model.backbone)) is not None:
                    loss = loss + penalty / share
        return (loss, outputs) if return_outputs else loss

    def charge_step(self) -> None:
        """Charges the clock for the optimizer step just done."""
        self.cost.charge_step(self.model, self.optimizer)
        self.stream.rows_seen += self.stream.step_rows_seen

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the clock to loss entries; to training entries also speed, utilisation and parts of a step."""
        super().log(logs | self.guard.settle() | clock_entries(self, logs), start_time)
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch  # as the stock method does; an objective must not sum up the clock

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Computes exact mean loss and floor on packed held-out rows; other data as in the stock Trainer."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        with self.cost.timekeeper.paused():
            if self.masking is None or eval_dataset is None or isinstance(eval_dataset, dict):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            metrics = held_out_metrics(self, eval_dataset, ignore_keys, metric_key_prefix)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predicts like the stock Trainer; a pre-training model returns logits and labels where it predicts."""
        with self.cost.timekeeper.paused(), self.average.applied():
            return super().predict(*args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        if self.model.pretrains and "labels" in inputs and not prediction_loss_only:
            return predictions.predict_labels(self, inputs)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saver.staging or super()._get_output_dir(trial))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        with settings_taking_effect(self.optimizer, self.lr_scheduler, checkpoint is not None and self.saver.changed):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _maybe_log_save_evaluate(self, tr_loss: Any, *args: Any, **kwargs: Any) -> None:
        logs = self.control.should_log
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if logs:
            tr_loss.nan_to_num_(0.0)  # the stock Trainer begins anew by NaN - NaN
        self.branches.save_due()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        if self.branches.current is not None or self.saver.has_saved(run / f"checkpoint-{self.state.global_step}"):
            return  # a branch is short, and starts again from its checkpoint
        with self.saver.checkpoint(self.state.global_step, run):
            super()._save_checkpoint(model, trial)
            restoring.name_best(self, run)

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> TrainOutput:
        with restoring.for_later(self, trial):
            return super()._finalize_training(trial, *args, **kwargs)

    def _load_best_model(self) -> None:
        restoring.load_best(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Exports the stock model, with tokenizer, card and `run.json`; only checkpoints keep the training model."""
        if self.saver.staging is not None:
            super().save_model(output_dir, _internal_call)
            return
        self.guard.check_exportable()
        if self.args.should_save:
            self.saver.export(output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str | None:
        """Uploads the exported model, as [`push`] does; arguments are those of the stock method."""
        return self.saver.push(*args, **kwargs)

    def create_model_card(self, language: Any = None, license: Any = None, tags: Any = None, **kwargs: Any) -> None:
        """Writes the package's own card, from the run's record and these facts."""
        if self.is_world_process_zero():
            self.saver.write_card({"language": language, "license": license, "tags": tags} | kwargs)
