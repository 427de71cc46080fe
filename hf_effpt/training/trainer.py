"""`EffptTrainer`: the stock Trainer, bound to a clock and open to methods."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import archive_events, rewarmed, span_of
from hf_effpt.core.method import Method
from hf_effpt.core.objectives import OBJECTIVES, objective_of
from hf_effpt.data.masking import DataCollatorForMaskedLM

from . import carbon, checkpoints, checks
from .adam import UncorrectedAdamW
from .arguments import EffptTrainingArguments
from .callbacks import ClockCallback, ClockProgress
from .choosing import ChoosingTrainer
from .energy import check_resumed
from .evaluation_loop import evaluate_rows, logged_metrics
from .flops import FlopCounter
from .meters import StepMeter
from .preparing import agreed, prepare_methods
from .reference_time_meter import ReferenceMeter
from .reference_time_table import ReferenceTimes
from .schedule import clock_schedule, set_paces
from .timekeeping import Timekeeper

ENDLESS = 2**31 - 1  # the number of steps where the clock, not a count, ends the run


class EffptTrainer(ChoosingTrainer):
    """Trains a model of this package on a budget, with its methods, and exports a stock model.

    Everything not named here is as in [`transformers.Trainer`]. `train(resume_from_checkpoint=…)` continues bit for
    bit; `save_model()` writes the exported stock model, while `checkpoint-N/` holds the training model.

    Args:
        model ([`PreTrainedModel`]): a training model, for example `EffptBertForMaskedLM` or
            `ElectraForJointPreTraining`; its configuration holds the methods.
        args ([`EffptTrainingArguments`]): with the budget.
        train_dataset: rows from [`pack`], or any map-style dataset of examples.
        data_collator (*optional*): by default [`DataCollatorForMaskedLM`], with the shares of the model's objective,
            for a model that pre-trains and a tokenizer, else as in the stock Trainer.

    Raises:
        EffptError: for a model, dataset or tokenizer that do not fit each other, before any training.
    """

    method: str | None = None  # the method that a named subclass switches on
    objectives: tuple[str, ...] = tuple(OBJECTIVES)  # those of the models that it trains

    def __init__(
        self,
        model: Any,
        args: EffptTrainingArguments,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        given = [dataset for dataset in (train_dataset, eval_dataset) if dataset is not None]
        checks.check_parts(model, args, given, processing_class)
        if kwargs.get("optimizers", (None, None)) != (None, None):
            raise EffptError(
                "A ready-made optimizer cannot follow a model that resumes in another shape; pass its class "
                "and settings as `optimizer_cls_and_kwargs`. The schedule follows the budget."
            )
        if kwargs.get("optimizer_cls_and_kwargs") is not None and not args.bias_correction:
            raise EffptError(
                "`optimizer_cls_and_kwargs` replaces the optimizer of `bias_correction=False`; leave one of them out."
            )
        if objective_of(model.config) not in self.objectives:
            raise EffptError(
                f"`{type(self).__name__}` trains models with the objective {' or '.join(self.objectives)}, but "
                f"`{type(model).__name__}` has `{objective_of(model.config)}`; use `EffptTrainer`."
            )
        if self.method is not None and self.method not in model.config.methods:
            model.add_method(self.method)
        checks.exclude_specials(model.config, processing_class)
        if data_collator is None and processing_class is not None and model.pretrains:
            data_collator = DataCollatorForMaskedLM(processing_class, seed=args.seed)
        inner = getattr(data_collator, "collator", data_collator)  # of one that adds to what another masks
        self.masking = inner if isinstance(inner, DataCollatorForMaskedLM) else None
        if self.masking is not None and self.masking.shares is None:
            self.masking.shares = OBJECTIVES[objective_of(model.config)].corruption
        self.preparation = prepare_methods(model, train_dataset, processing_class, args.seed)
        for method in model.methods:
            data_collator = method.wrap_collator(data_collator)
        if args.ddp_find_unused_parameters is None:
            # a layer that does not run has no gradient to wait for
            args.ddp_find_unused_parameters = bool(model.methods)
        if args.ddp_broadcast_buffers is None:
            args.ddp_broadcast_buffers = False  # the buffers of methods change in the same way in every process
        with carbon.without_stock_tracker(args):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        if train_dataset is not None:
            checks.check_size(train_dataset, self.args, self.methods)
        self.preparation = agreed(self.preparation, self.accelerator)
        self.facts, self.evaluation = {}, None
        self.meter = StepMeter(self.args.device)
        self.counter = FlopCounter()
        self.check_pickers()
        self.begin(None)
        checks.check_steps(self.clock, self.methods)
        self.callback_handler.callbacks.insert(0, ClockCallback(self))
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ClockProgress(self))

    # What the run is made of.

    @property
    def methods(self) -> list[Method]:
        return self.model.methods

    @property
    def step_rows(self) -> int:
        """Rows of an optimizer step, over all micro-batches and processes."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    @property
    def step_rows_seen(self) -> int:
        """Rows that all processes have taken from the stream in the last optimizer step."""
        return self._step_rows * self.args.world_size

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """As in the stock Trainer; resuming builds the model that the checkpoint's configuration describes.

        Raises:
            EffptError: if the checkpoint to resume from is missing or not whole; the last whole one is named.
        """
        if resume_from_checkpoint:
            checkpoint = checkpoints.choose(resume_from_checkpoint, Path(self.args.output_dir))
            self.begin(checkpoints.totals(checkpoint))
            checkpoints.check_data(checkpoint, self.train_dataset)
            checkpoints.check_optimizer(checkpoint, self.args.bias_correction)
            self.model = checkpoints.load_training_model(self.model, checkpoint).to(self.args.device)
            self.model_wrapped = self.model
            self.optimizer = None
            if self.clock.finished:
                self.create_optimizer_and_scheduler(1)  # whose learning rate is that of the end
                self.state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))
                return TrainOutput(self.state.global_step, 0.0, {})
            resume_from_checkpoint = str(checkpoint)
        else:
            self.begin(None)
            checks.check_left(self.clock, self.costs, self.method_flops)
            archive_events(self.model.config)
            if self.model.snapshot is not None:
                self.model.snapshot.take(self.model)
        checks.check_processes(self.methods, self.args.world_size)
        self.compile_model()
        with carbon.tracking(self.args, self.timekeeper):
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def begin(self, totals: dict[str, Any] | None) -> None:
        """Sets the clock to zero, or to the totals saved in a checkpoint."""
        clock = self.args.clock
        if clock is None:
            rows = 0 if self.train_dataset is None else len(self.train_dataset)
            clock = Clock("steps", max(1, math.ceil(self.args.num_train_epochs * rows / self.step_rows)))
        self.rows_seen, self._step_rows, self._carried = 0, 0, None
        self._step_tokens, self._step_flops = 0, 0.0
        self._step_loss: Any = 0.0
        self.costs, self.method_flops, self.prepaid = {}, {}, 0.0
        self.timekeeper = Timekeeper(clock, self.args.device, self.args.world_size)
        self.reference = self._reference_meter() if clock.unit == "reference_seconds" else None
        if totals is not None:
            clock.restore(totals)
            self.rows_seen = totals["rows"]
            self.costs = dict(totals.get("costs") or {})
            self.method_flops = dict(totals.get("method_flops") or {})
            check_resumed(clock)
            self.prepaid = totals.get("prepaid", 0.0)
        elif self.preparation or self.prior:
            self.charge_preparation()

    @property
    def trained_share(self) -> float:
        """How much is spent of what the budget left for training: what the learning rate and its warm-up follow.

        A method may have them run anew, in a part of the budget.
        """
        since, until = span_of(self.model.config)
        since = max(since, self.prepaid)
        return min(1.0, (self.clock.fraction - since) / (until - since)) if since < until else 1.0

    def _reference_meter(self) -> ReferenceMeter:
        if self.args.world_size > 1:
            raise EffptError(
                f"The budget {self.args.budget} is reference time, which counts the operations of one process, not of "
                f"{self.args.world_size}; start one, or give tokens, flops or time."
            )
        times = ReferenceTimes.open(self.args.reference_times, self.args.device)
        return ReferenceMeter(times, self._matmul_dtype, self.accelerator.autocast, lambda: self.timekeeper.paused())

    def compile_model(self) -> None:
        """Compiles each layer by itself, if asked for: then neither dropped nor added layers recompile the others."""
        if self.args.compile_layers:
            for layer in layers_of(self.model.backbone).children():
                layer.compile()

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """One endless pass; the number of steps is the budget where it counts steps, else the clock ends the run."""
        steps = int(self.clock.budget) if self.clock.unit == "steps" else ENDLESS
        micro_batches = steps * args.gradient_accumulation_steps
        return 1, steps, len(self.train_dataset), steps * self.step_rows, self.step_rows, micro_batches, steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The stock schedule of that name, as a function of the share of the budget that is spent."""
        if self.lr_scheduler is None:
            length = int(self.clock.budget) if self.clock.unit == "steps" else 1_000_000
            self._warmup = self.args.get_warmup_steps(length) / length
            self.lr_scheduler = clock_schedule(
                self.args,
                optimizer or self.optimizer,
                lambda: self.trained_share,
                length,
                lambda: rewarmed(self.model.config, self.clock.steps),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """As in the stock Trainer, or the optimizer without bias correction."""
        kind, kwargs = ChoosingTrainer.get_optimizer_cls_and_kwargs(args, model)
        return (kind if args.bias_correction else UncorrectedAdamW), kwargs

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """As in the stock Trainer, without the parameters of modules with a true `no_weight_decay`, such as gates."""
        spared = {
            parameter
            for module in model.modules()
            if getattr(module, "no_weight_decay", False)
            for parameter in module.parameters()
        }
        names = super().get_decay_parameter_names(model)
        return [name for name in names if model.get_parameter(name) not in spared]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in the stock Trainer; the parameters of modules with a `learning_rate` are in a group of their own.

        Raises:
            EffptError: if it could not follow a method that changes the set of parameters.
        """
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            checks.check_optimizer(optimizer, self.methods)
            set_paces(optimizer, self.model)
        return optimizer

    def refresh_optimizer(self) -> None:
        """Points the live optimizer at the model's present parameters; those that stayed keep their state."""
        live, self.optimizer = self.optimizer, None
        fresh, self.optimizer = self.create_optimizer(), live
        for group, new in zip(live.param_groups, fresh.param_groups, strict=True):
            group["params"] = new["params"]
        present = {parameter for group in live.param_groups for parameter in group["params"]}
        for gone in [parameter for parameter in live.state if parameter not in present]:
            del live.state[gone]

    # A step.

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one optimizer step, on the device, and the number of labels in all of them."""
        with self.meter.measure("data"):
            self._step_loss = 0.0
            if self.picks_rows:
                batches = self.chosen(epoch_iterator, num_batches, device)
            else:
                self._step_rows = num_batches * self.args.train_batch_size
                batches = [
                    {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                    for batch in islice(epoch_iterator, num_batches)
                ]
            tokens = sum(batch["input_ids"].numel() for batch in batches)
            seen = self._step_rows / (num_batches * self.args.train_batch_size)
            self._step_tokens += round(tokens * seen) * self.args.world_size
            self._step_learned = tokens * self.args.world_size
            return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """What the losses of the step are divided by: of a model with two losses two numbers."""
        counts = [self.model.count_items(batch) for batch in batch_samples] if self.model_accepts_loss_kwargs else []
        if not counts or counts[0] is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = torch.stack(counts).sum(dim=0).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.reduce(total)
        return total

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        with self.meter.measure("training_step"):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_flops = self.counter.count(self.model, inputs)
        self._step_flops += self._micro_flops * self.args.world_size
        self._step_loss = self._step_loss + loss
        if self.reference is not None:
            self.reference.add_training(self.model, inputs)
        return loss

    def floating_point_ops(self, inputs: Any) -> float:
        """Of the micro-batch just trained on: counted, not estimated from the number of parameters."""
        return self._micro_flops

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self.meter.measure("forward") if model.training else nullcontext():
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            # The Trainer divides a micro-batch mean by the accumulation steps afterwards, but not a loss scaled
            # already.
            scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            share = self.current_gradient_accumulation_steps if scaled else 1
            for method in self.methods:
                if (penalty := method.penalty(self.model.backbone)) is not None:
                    loss = loss + penalty / share
        return (loss, outputs) if return_outputs else loss

    def charge_step(self) -> None:
        """Charges the clock for the optimizer step just done."""
        reference = None
        if self.reference is not None:
            self.reference.add_optimizer(self.model, self.optimizer, self.args.max_grad_norm)
            reference = self.reference.take()
        seconds = self.timekeeper.step(tokens=self._step_tokens, flops=self._step_flops, reference_seconds=reference)
        self.meter.add(tokens=self._step_learned, flops=self._step_flops, seconds=seconds)
        self.rows_seen += self.step_rows_seen
        self._step_tokens, self._step_flops = 0, 0.0

    # What is measured.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the clock to each entry; to those of training also speed, utilisation and the parts of a step."""
        if "loss" in logs:
            self.meter.seconds += self.timekeeper.settle()
            with self.timekeeper.paused():
                logs |= self.meter.summary(self._matmul_dtype, devices=self.args.world_size)
                logs |= logged_metrics(self.model, self.accelerator)
                self.note_selection()
            self.meter.reset()
        if any(name.endswith("loss") for name in logs if name != "train_loss"):  # which comes with its own totals
            totals = self.clock.as_dict() | {"clock": self.clock.fraction}
            names = ("clock", "tokens", "flops", "seconds", "reference_seconds", "joules")
            logs |= {name: totals[name] for name in names if totals[name] is not None}
        super().log(logs, start_time)

    @property
    def _matmul_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """For packed held-out rows the exact mean loss, and the floor that it has to get below; else as stock."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.masking is None or eval_dataset is None or isinstance(eval_dataset, dict):
            with self.timekeeper.paused():
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        began = time.perf_counter()
        with self.timekeeper.paused():
            self.evaluation = evaluate_rows(self, eval_dataset) | {"step": self.state.global_step}
            metrics = {f"{metric_key_prefix}_loss": self.evaluation["held_out_loss"]}
            metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - began
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
