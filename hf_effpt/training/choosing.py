"""Choosing: methods that pick which rows are learned from, out of more than a step holds."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core.context import Look, Work
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, candidates
from hf_effpt.core.modes import evaluating
from hf_effpt.data.packed_rows import PackedRows, identity_of_rows

from .charging import ChargingTrainer
from .flops import FlopCounter
from .loading import KEYS
from .meters import StepMeter
from .reference_models import UNITS, cost_in, has_seen, load_reference, record_in

logger = logging.getLogger(__name__)


class ChoosingTrainer(ChargingTrainer):
    """A Trainer whose methods may look at more rows than they learn from."""

    counter: FlopCounter
    meter: StepMeter
    processing_class: Any
    _step_rows: int  # that this process has taken from the stream in the step under way

    @property
    def pickers(self) -> list[Method]:
        """The methods that pick rows."""
        return [method for method in self.methods if type(method).select is not Method.select]

    @property
    def picks_rows(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether there are any."""
        return bool(self.pickers)

    def check_pickers(self) -> None:
        """Checks, before any training, that methods can pick rows out of the data, and loads what they compare with.

        Raises:
            EffptError: if they cannot.
        """
        self._references: dict[str, Any] = {}
        self._own_flops: dict[tuple, float] = {}
        self.prior = {}
        for method in self.pickers:
            if self.masking is None:
                raise EffptError(
                    f"`{method.name}` judges masked rows, so it needs a `DataCollatorForMaskedLM` and a model that "
                    f"pre-trains, not `{type(self.data_collator).__name__}`; remove `{method.name}` to fine-tune."
                )
            for folder in method.references:
                self._check_length(self.reference_model(folder), folder)
                self._charge_reference(method, folder)
        if self.masking is not None:
            self.masking.keyed = self.picks_rows

    def _charge_reference(self, method: Method, folder: str) -> None:
        """Has the run pay for the training of a model that its method compares with."""
        record = record_in(folder)
        if record is None:
            logger.warning(
                "%s has no run.json, so what the model in it has cost is not known and `%s` is not charged for it.",
                folder, method.name,
            )  # fmt: skip
            return
        if has_seen(record, self.train_dataset):
            logger.warning(
                "The model in %s, which `%s` compares with, was trained on the rows of this run, so it knows their "
                "noise as well; train it on text of its own.",
                folder, method.name,
            )  # fmt: skip
        before = self.prior.get(method.name, dict.fromkeys(UNITS, 0.0))
        self.prior[method.name] = {unit: before[unit] + spent for unit, spent in cost_in(record, folder).items()}

    def _check_length(self, model: Any, folder: str) -> None:
        if self.train_dataset is None or not PackedRows.fits(self.train_dataset):
            return
        length, most = PackedRows(self.train_dataset).sequence_length, model.config.max_position_embeddings
        if length > most:
            raise EffptError(
                f"The model to compare with in {folder!r} reads {most} tokens at most, and rows have {length}; train "
                "one with as large a `model.max_position_embeddings`, or pack shorter rows."
            )

    def pull(self, batches: Iterator[dict[str, Tensor]], number: int) -> dict[str, Tensor]:
        """The next rows of the stream, in whatever sizes they come; what is left of a batch waits for the next."""
        parts, have = ([self._carried], len(self._carried["input_ids"])) if self._carried else ([], 0)
        while have < number:
            parts.append(next(batches))
            have += len(parts[-1]["input_ids"])
        rows = parts[0] if len(parts) == 1 else self._joined(parts)
        self._carried = {name: values[number:] for name, values in rows.items()} if have > number else None
        return {name: values[:number] for name, values in rows.items()}

    def _joined(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        pinned = any(values.is_pinned() for values in parts[0].values())  # which a copy no longer is
        return {name: values.pin_memory() for name, values in rows.items()} if pinned else rows

    def chosen(self, batches: Iterator[dict[str, Tensor]], number: int, device: torch.device) -> list[dict]:
        """So many micro-batches, on the device, of the rows that the methods have picked."""
        step, fraction, size = self.state.global_step, self.clock.fraction, self.args.train_batch_size
        left = size * number
        self._step_rows = candidates(self.pickers, left, step, fraction)
        host = rows = self.pull(batches, self._step_rows)
        for place, method in enumerate(self.pickers):
            later = candidates(self.pickers[place + 1 :], left, step, fraction)
            look = Look(
                later, step, fraction, self.args.seed,
                scored=partial(self.scored, method),
                counted=partial(self.counting, method, "select", later),
                reference=self.reference_model,
                mask_anew=self.mask_anew,
                host=host,
                data=self.data_identity,
                masks=self._masks,
            )  # fmt: skip
            host = {name: values.cpu() for name, values in rows.items()} if place else host
            rows = {name: values.to(device, non_blocking=True) for name, values in rows.items()}
            with self.meter.measure("selection"), self.method_cost(method, noted=device.type != "cuda"):
                rows = method.select(self.model, rows, look)
        rows = {name: values.to(device, non_blocking=True) for name, values in rows.items() if name not in KEYS}
        return [{name: values[at : at + size] for name, values in rows.items()} for at in range(0, left, size)]

    @torch.no_grad()
    def scored(
        self,
        method: Method,
        name: str,
        work: Work,
        rows: Mapping[str, Tensor],
        model: Any = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Has a model judge rows, as many at a time as a micro-batch has, charged as work of `method`."""
        judge, size = model or self.model, self.args.train_batch_size
        inputs = {key: values for key, values in rows.items() if key not in KEYS}
        found, began, measured = [], time.perf_counter(), self._uncharged
        with evaluating(judge), self.accelerator.autocast():
            for at in range(0, len(rows["input_ids"]), size):
                batch = {key: values[at : at + size] for key, values in inputs.items()}
                if known is None:
                    found.append(work(judge, batch))
                with self.uncharged():
                    flops = self.counter.count_work(judge, batch, work, (name, model is None))
                    if self.reference is not None and self.args.charge_methods:
                        self.reference.add_work(name, judge, batch, work)
                self.charge_flops(method, flops * self.args.world_size)
        self._in_table += time.perf_counter() - began - (self._uncharged - measured)
        return torch.cat(found) if known is None else known

    @contextmanager
    def counting(self, method: Method, *what: Any) -> Iterator[None]:
        """Charges the FLOPs of a method's own in the block, which are the same for equal `what` and as many rows.

        No model may run in it: what is being counted is not compiled.
        """
        if method not in self.pickers:
            yield
            return
        key = (method.name, self._step_rows, *what)
        if key not in self._own_flops:  # counting slows work down many times
            with FlopCounterMode(display=False) as counter:
                yield
            self._own_flops[key] = counter.get_total_flops()
        else:
            yield
        self.charge_flops(method, self._own_flops[key] * self.args.world_size)

    def note_selection(self) -> None:
        """Adds up what the meter has measured of picking rows, where the device works on its own."""
        if self.args.device.type == "cuda" and self.pickers:
            name = self.pickers[0].name
            self.costs[name] = self.costs.get(name, 0.0) + self.meter.selecting

    def mask_anew(self, rows: Mapping[str, Tensor], rates: Any) -> dict[str, Tensor]:
        """The same rows, masked again by token of the vocabulary."""
        return self.masking(self.masking.original(rows), token_rates=rates)

    @cached_property
    def data_identity(self) -> str:
        """What tells the training rows from others."""
        return identity_of_rows(PackedRows(self.train_dataset))

    @property
    def _masks(self) -> str:
        of = self.masking
        return f"{of.seed}, {of.mlm_probability}, whole words {of.whole_word}, {of.shares}"

    def reference_model(self, folder: str) -> Any:
        """The frozen masked language model in a folder, loaded once.

        Raises:
            EffptError: if there is none, or it has another vocabulary.
        """
        if folder not in self._references:
            model = load_reference(folder, self.model.config.vocab_size, self.processing_class)
            self._references[folder] = model.to(self.args.device)
        return self._references[folder]
