"""`EffptTrainer`: the stock Trainer with a budget clock and methods."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.clock import Clock
from hf_effpt.core.ledger import archive_events, rewarmed, span_of
from hf_effpt.core.method import Method
from hf_effpt.core.objectives import OBJECTIVES, objective_of
from hf_effpt.core.row_method import RowMethod, row_methods
from hf_effpt.data.masking import DataCollatorForMaskedLM

from . import carbon, checkpoints, checks, losses
from .arguments import EffptTrainingArguments
from .averaging import WeightAverage
from .branches import Branches, check_branches
from .callbacks import ClockCallback, ClockProgress, schedule_methods
from .cost import CostMeter
from .evaluation_loop import evaluate_rows, logged_metrics
from .guard import FiniteGuard
from .muon import MUON, Muon, give_matrices, muon_arguments
from .optimization import UncorrectedAdamW, clock_schedule, decaying, set_paces
from .phases import check_rows, identity_of_run, phases_of, position_in, ramped
from .preparing import prepare_methods
from .resuming import parts_of, settings_taking_effect
from .row_selection import RowSelection
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
        model ([`PreTrainedModel`]): training model, such as `EffptBertForMaskedLM`; its configuration holds the
            methods.
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
    _warmup = 0.0  # as a fraction of the budget, set with the schedule

    def __init__(
        self, model: Any, args: EffptTrainingArguments, data_collator: Any = None, train_dataset: Any = None,
        eval_dataset: Any = None, processing_class: Any = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        train_dataset = (phases := phases_of(train_dataset))[0].rows
        given = [dataset for dataset in (train_dataset, eval_dataset) if dataset is not None]
        checks.check_parts(model, args, given, processing_class, kwargs, type(self))
        if self.method is not None and self.method not in model.config.methods:
            model.add_method(self.method)
        losses.check_losses(model, args, kwargs)
        checks.exclude_specials(model.config, processing_class)
        if data_collator is None and processing_class is not None and model.pretrains:
            data_collator = DataCollatorForMaskedLM(processing_class, seed=args.seed)
        inner = getattr(data_collator, "collator", data_collator)  # a collator may wrap the masking one
        self.masking = inner if isinstance(inner, DataCollatorForMaskedLM) else None
        if self.masking is not None and self.masking.shares is None:
            self.masking.shares = OBJECTIVES[objective_of(model.config)].corruption
        prepare_seconds = prepare_methods(model, train_dataset, processing_class, args.seed)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = bool(model.methods)  # a layer that does not run has no gradient
        if args.ddp_broadcast_buffers is None:
            args.ddp_broadcast_buffers = False  # buffers of methods change equally in all processes
        with carbon.without_stock_tracker(args):
            super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        losses.smooth_in_model(self)
        phases = ramped(phases, self.args)
        check_rows(phases, model, self.args, self.masking is not None)
        self.facts: dict[str, Any] = {}  # further entries of `run.json`
        self.evaluation: dict[str, Any] | None = None  # last held-out evaluation
        self.step_loss: Any = 0.0  # of the current step, summed over micro-batches
        self.cost = CostMeter(self.args, self.accelerator.autocast)
        self.cost.expect(prepare_seconds, model.start_cost, self.accelerator)
        self.stream = TrainingStream(self.args, phases, self.data_collator, keyed=self.masking is not None)
        self.selection = RowSelection(self.stream, self.cost, self.masking, processing_class)
        self.saver, self.stopper, self.guard = checkpoints.Saver(self), Stopper(self), FiniteGuard(self)
        self.branches, self.average = Branches(self), WeightAverage(self)
        self.selection.check(self.model, self.row_methods)
        checks.check_body(self.model, self.args)
        self.begin(None)
        checks.check_steps(self.clock, self.methods)
        self.callback_handler.callbacks.insert(0, ClockCallback(self))
        if self.pop_callback(transformers.trainer.DEFAULT_PROGRESS_CALLBACK) is not None:  # another in a notebook
            self.add_callback(ClockProgress(self))

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

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trains like the stock Trainer; resuming rebuilds the model from the checkpoint's configuration.

        Raises `EffptError` for a checkpoint that is not whole, naming the last whole one; `RunStopped` after a signal.
        """
        if resume_from_checkpoint:
            checkpoint = checkpoints.choose(resume_from_checkpoint, Path(self.args.output_dir))
            self.begin(checkpoints.totals(checkpoint, identity_of_run(self), self.args))
            self.model = checkpoints.load_training_model(self.model, checkpoint).to(self.args.device)
            self.model_wrapped = self.model
            self.optimizer = None
            self.average.begin(checkpoint)
            losses.smooth_in_model(self)
            if self.clock.finished:
                self.create_optimizer_and_scheduler(1)  # at the final learning rate
                self.state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))
                return TrainOutput(self.state.global_step, 0.0, {})
            resume_from_checkpoint = str(checkpoint)
        else:
            self.begin(None)
            self.average.begin(None)
            checks.check_left(self.clock, self.cost.method_seconds, self.cost.method_flops)
            check_branches(self.args, self.cost.upfront_fraction)
            archive_events(self.model.config)
            if self.model.snapshot is not None:
                self.model.snapshot.take(self.model)
        checks.check_processes(self.methods, self.args.world_size)
        self.branches.begin()
        if self.args.compile_layers:  # layer by layer, so that dropped or added ones do not recompile the others
            for layer in layers_of(self.model.backbone).children():
                layer.compile()
        with self.stopper.listening(), carbon.tracking(self.args, self.cost.timekeeper):
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def begin(self, totals: dict[str, Any] | None) -> None:
        """Sets clock and rows to zero, or to the totals of a checkpoint."""
        clock = self.args.clock
        if clock is None:
            rows = 0 if self.train_dataset is None else len(self.train_dataset)
            clock = Clock("steps", max(1, math.ceil(self.args.num_train_epochs * rows / self.step_rows)))
        clock.end = self.branches.current or 1.0
        self.stream.begin(**position_in(totals))
        self.cost.begin(clock, totals)
        self.guard.begin(totals)
        self.saver.parts = parts_of(self.args, totals)

    @property
    def trained_share(self) -> float:
        """Fraction spent of the training part of the budget, which the learning rate follows.

        A method may restart the learning rate within a part of the budget.
        """
        (since, until), clock = span_of(self.model.config), self.cost.clock
        since, until = max(since, self.cost.upfront_fraction), min(until, clock.end)
        return min(1.0, (clock.fraction - since) / (until - since)) if since < until else 1.0

    @property
    def is_warming_up(self) -> bool:
        """`True` while the learning rate rises, at the start or after an event that asks for it."""
        return self.trained_share < self._warmup or rewarmed(self.model.config, self.clock.steps) < 1

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """Sets one endless epoch; its steps are the budget if that is in steps, else the clock ends the run."""
        steps = int(self.clock.budget) if self.clock.unit == "steps" else ENDLESS
        micro_batches = steps * args.gradient_accumulation_steps
        return 1, steps, len(self.train_dataset), steps * self.step_rows, self.step_rows, micro_batches, steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Creates the stock schedule as a function of the fraction of the budget spent."""
        if self.lr_scheduler is None:
            length = int(self.clock.budget) if self.clock.unit == "steps" else 1_000_000
            self._warmup = self.args.get_warmup_steps(length) / length
            self.lr_scheduler = clock_schedule(
                self.args, optimizer or self.optimizer, lambda: self.trained_share, length,
                lambda: rewarmed(self.model.config, self.clock.steps),
            )  # fmt: skip
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """Returns the stock optimizer, Muon, or AdamW without bias correction."""
        if args.optim == MUON:
            return Muon, muon_arguments(args)
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return (kind if args.bias_correction else UncorrectedAdamW), kwargs

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
            if isinstance(optimizer, Muon):
                give_matrices(optimizer, self.model)
            set_paces(optimizer, self.model)
        return optimizer

    def refresh_optimizer(self) -> None:
        """Points the optimizer at the model's current parameters; those that stay keep their state."""
        live, self.optimizer = self.optimizer, None
        fresh, self.optimizer = self.create_optimizer(), live
        for group, new in zip(live.param_groups, fresh.param_groups, strict=True):
            group["params"] = new["params"]
        self.cost.counter.clear()
        present = {parameter for group in live.param_groups for parameter in group["params"]}
        for gone in [parameter for parameter in live.state if parameter not in present]:
            del live.state[gone]

    def get_train_dataloader(self) -> Any:
        """Returns an endless loader of micro-batches from the current row."""
        strip = self.masking is None and hasattr(self.train_dataset, "column_names")
        rows = self._remove_unused_columns(self.train_dataset) if strip else self.train_dataset
        self.stream.replace(rows, self.data_collator)  # the user may have replaced both
        return self.stream.loader(may_carry=bool(self.row_methods))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Returns an ordered loader of held-out rows, with the same 15 % of tokens chosen at every call."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.masking is None:
            return super().get_eval_dataloader(eval_dataset)
        shares = OBJECTIVES[objective_of(self.model.config)].corruption
        return self.stream.held_out(eval_dataset, DataCollatorForMaskedLM(self.masking.tokenizer, shares=shares))

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
            self.cost.step_tokens += round(tokens * seen) * self.args.world_size
            self.cost.learned_tokens = tokens * self.args.world_size
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
        logs |= self.guard.settle()
        if "loss" in logs:
            self.cost.meter.seconds += self.cost.timekeeper.settle()
            with self.cost.timekeeper.paused():
                logs |= self.cost.meter.summary(self.cost.dtype, devices=self.args.world_size)
                logs |= logged_metrics(self.model, self.accelerator)
                self.selection.note_device_time(self.row_methods)
            self.cost.meter.reset()
        if any(name.endswith("loss") for name in logs if name != "train_loss"):  # it has its own totals
            totals = self.clock.as_dict() | {"clock": self.clock.fraction}
            names = ("clock", "tokens", "flops", "seconds", "reference_seconds", "joules")
            logs |= {name: totals[name] for name in names if totals[name] is not None}
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Computes exact mean loss and floor on packed held-out rows; other data as in the stock Trainer."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.cost.timekeeper.paused():
            if self.masking is None or eval_dataset is None or isinstance(eval_dataset, dict):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            began = time.perf_counter()
            self.evaluation = evaluate_rows(self, eval_dataset) | {"step": self.state.global_step}
            metrics = {f"{metric_key_prefix}_loss": self.evaluation["held_out_loss"]}
            metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - began
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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
        if self.args.branches:
            self.branches.save_due()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.branches.current is not None:  # it is short, and starts again from its checkpoint
            return
        with self.saver.checkpoint(self.state.global_step):
            super()._save_checkpoint(model, trial)

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
            self.saver.write_card({"language": language, "license": license, "tags": tags})
