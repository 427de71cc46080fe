"""`EffptTrainer`: the stock Trainer, bound to a clock and open to methods."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerState
from transformers.optimization import get_scheduler
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.packing import PackedRows
from hf_effpt.evaluation.loss import held_out_loss, unigram_floor
from hf_effpt.models import EffptBertForMaskedLM

from . import carbon, checkpoints, checks
from .arguments import EffptTrainingArguments
from .energy import check_resumed
from .flops import FlopCounter
from .meters import StepMeter
from .progress import ClockCallback, ClockProgress
from .reference import ReferenceTimes
from .reference_meter import ReferenceMeter
from .saving import ExportingTrainer
from .stream import BatchStream, KeyedRows
from .timekeeping import Timekeeper

ENDLESS = 2**31 - 1  # the number of steps where the clock, not a count, ends the run


class EffptTrainer(ExportingTrainer):
    """Trains a model of this package on a budget, with its methods, and exports a stock model.

    Everything not named here is as in [`transformers.Trainer`]. `train(resume_from_checkpoint=…)` continues bit for
    bit; `save_model()` writes the exported stock model, while `checkpoint-N/` holds the training model.

    Args:
        model ([`PreTrainedModel`]): a training model, for example `EffptBertForMaskedLM`; its configuration holds the
            methods.
        args ([`EffptTrainingArguments`]): with the budget.
        train_dataset: rows from [`pack`], or any map-style dataset of examples.
        data_collator (*optional*): by default [`DataCollatorForMaskedLM`] for a masked-language model with a
            tokenizer, else as in the stock Trainer.

    Raises:
        EffptError: for a model, dataset or tokenizer that do not fit each other, before any training.
    """

    method: str | None = None  # the method that a named subclass switches on

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
        if self.method is not None and self.method not in model.config.methods:
            model.add_method(self.method)
        if data_collator is None and processing_class is not None and isinstance(model, EffptBertForMaskedLM):
            data_collator = DataCollatorForMaskedLM(processing_class, seed=args.seed)
        self.masking = data_collator if isinstance(data_collator, DataCollatorForMaskedLM) else None
        for method in model.methods:
            data_collator = method.wrap_collator(data_collator)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = bool(
                model.methods
            )  # a layer that does not run has no gradient to wait for
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
            checks.check_size(train_dataset, self.step_rows)
        self.facts, self.evaluation = {}, None
        self.meter = StepMeter(self.args.device)
        self.counter = FlopCounter()
        self.begin(None)
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

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """As in the stock Trainer; resuming builds the model that the checkpoint's configuration describes.

        Raises:
            EffptError: if the checkpoint to resume from is missing or not whole; the last whole one is named.
        """
        if resume_from_checkpoint:
            checkpoint = checkpoints.choose(resume_from_checkpoint, Path(self.args.output_dir))
            self.begin(checkpoints.totals(checkpoint))
            checkpoints.check_data(checkpoint, self.train_dataset)
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
        self.compile_model()
        with carbon.tracking(self.args, self.timekeeper):
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def begin(self, totals: dict[str, Any] | None) -> None:
        """Sets the clock to zero, or to the totals saved in a checkpoint."""
        clock = self.args.clock
        if clock is None:
            rows = 0 if self.train_dataset is None else len(self.train_dataset)
            clock = Clock("steps", max(1, math.ceil(self.args.num_train_epochs * rows / self.step_rows)))
        self.rows_seen = 0
        self._step_tokens, self._step_flops = 0, 0.0
        self.costs = {}
        self.timekeeper = Timekeeper(clock, self.args.device, self.args.world_size)
        self.reference = self._reference_meter() if clock.unit == "reference_seconds" else None
        if totals is not None:
            clock.restore(totals)
            self.rows_seen = totals["rows"]
            self.costs = dict(totals.get("costs") or {})
            check_resumed(clock)

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
            length = num_training_steps if self.clock.unit == "steps" else 1_000_000
            self.lr_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer or self.optimizer,
                num_warmup_steps=self.args.get_warmup_steps(length),
                num_training_steps=length,
                scheduler_specific_kwargs=cast("dict | None", self.args.lr_scheduler_kwargs),  # no string once parsed
            )
            schedules = self.lr_scheduler.lr_lambdas
            self.lr_scheduler.lr_lambdas = [
                lambda _, schedule=schedule: schedule(self.clock.fraction * length) for schedule in schedules
            ]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def refresh_optimizer(self) -> None:
        """Points the live optimizer at the model's present parameters; those that stayed keep their state."""
        live, self.optimizer = self.optimizer, None
        fresh, self.optimizer = self.create_optimizer(), live
        for group, new in zip(live.param_groups, fresh.param_groups, strict=True):
            group["params"] = new["params"]
        present = {parameter for group in live.param_groups for parameter in group["params"]}
        for gone in [parameter for parameter in live.state if parameter not in present]:
            del live.state[gone]

    # Data.

    def get_train_dataloader(self) -> DataLoader:
        """An endless stream of batches, entered at the row where the run stands."""
        stream = BatchStream(
            len(self.train_dataset),
            self.args.train_batch_size,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            start=self.rows_seen,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        return self._loader(self.train_dataset, self.data_collator, stream)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Held-out rows in order, masked at 15 % whatever the rate in training, the same at every call."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.masking is None:
            return super().get_eval_dataloader(eval_dataset)
        rows = [(0, row) for row in range(self.args.process_index, len(eval_dataset), self.args.world_size)]
        size = self.args.per_device_eval_batch_size
        batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        return self._loader(eval_dataset, DataCollatorForMaskedLM(self.masking.tokenizer), batches)

    def _loader(self, dataset: Any, collator: Any, batches: Any) -> DataLoader:
        if self.masking is None and hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset)
        workers = self.args.dataloader_num_workers
        return DataLoader(
            KeyedRows(dataset, keyed=self.masking is not None),
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=torch.Generator(),  # its own: the loader must not draw from the generator that dropout uses
        )

    # A step.

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one optimizer step, on the device, and the number of labels in all of them."""
        with self.meter.measure("data"):
            batches = list(islice(epoch_iterator, num_batches))
            self._step_tokens = sum(batch["input_ids"].numel() for batch in batches) * self.args.world_size
            for method in self.methods:
                chooses = type(method).select is not Method.select
                with self.method_cost(method), FlopCounterMode(display=False) if chooses else nullcontext() as counter:
                    batches = method.select(self.model, batches)
                if counter is not None and self.args.charge_methods:
                    self._step_flops += counter.get_total_flops() * self.args.world_size
            batches = [
                {name: value.to(device, non_blocking=True) for name, value in batch.items()} for batch in batches
            ]
            return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        with self.meter.measure("training_step"):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._micro_flops = self.counter.count(self.model, inputs)
        self._step_flops += self._micro_flops * self.args.world_size
        if self.reference is not None:
            self.reference.add_training(self.model, inputs)
        return loss

    @contextmanager
    def method_cost(self, method: Method) -> Iterator[None]:
        """Adds up the seconds that a method takes besides training; the clock pays for them unless told not to.

        Reference time is charged the seconds themselves, since what a method does has no entry in the table.
        """
        began = time.perf_counter()
        with nullcontext() if self.args.charge_methods else self.timekeeper.paused():
            yield
        seconds = time.perf_counter() - began
        self.costs[method.name] = self.costs.get(method.name, 0.0) + seconds
        if self.reference is not None and self.args.charge_methods:
            self.reference.add_seconds(seconds)

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
        self.meter.add(tokens=self._step_tokens, flops=self._step_flops, seconds=seconds)
        self.rows_seen += self.step_rows
        self._step_flops = 0.0

    # What is measured.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the clock to each entry; to those of training also speed, utilisation and the parts of a step."""
        if "loss" in logs:
            self.meter.seconds += self.timekeeper.settle()
            with self.timekeeper.paused():
                logs |= self.meter.summary(self._matmul_dtype, devices=self.args.world_size)
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
        """For packed held-out rows the exact mean loss over masked tokens, and the unigram floor; else as stock."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.masking is None or eval_dataset is None or isinstance(eval_dataset, dict):
            with self.timekeeper.paused():
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        began = time.perf_counter()
        with self.timekeeper.paused():
            held_out = held_out_loss(self.model, self.get_eval_dataloader(eval_dataset))
            sums = np.concatenate([[held_out.total], held_out.label_counts])
            sums = self.accelerator.reduce(torch.tensor(sums, device=self.args.device)).cpu().numpy()
            masked = int(sums[1:].sum())
            self.evaluation = {
                "held_out_loss": float(sums[0] / masked),
                "masked_tokens": masked,
                "step": self.state.global_step,
            }
            if self.train_dataset is not None and PackedRows.fits(self.train_dataset):
                self.evaluation["unigram_floor"] = unigram_floor(
                    PackedRows(self.train_dataset), sums[1:], self.masking.tokenizer.all_special_ids
                )
            metrics = {f"{metric_key_prefix}_loss": self.evaluation["held_out_loss"]}
            metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - began
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
