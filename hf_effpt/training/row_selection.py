"""Row selection: methods train on some rows chosen from more than a step holds."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from hf_effpt.core.context import RunContext
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method
from hf_effpt.core.modes import evaluating
from hf_effpt.core.row_method import RowMethod, ScoreFunction, SelectionContext, candidates
from hf_effpt.data.packed_rows import PackedRows, identity_of_rows

from .cost import NOTHING, CostMeter
from .reference_models import has_seen, load_reference, record_in
from .stream import TrainingStream, on_device

logger = logging.getLogger(__name__)


class RowSelection:
    """Lets the row-selection methods of a run choose rows from `stream` at each step, and charges `cost`.

    `masking` is the [`DataCollatorForMaskedLM`], if any; `tokenizer` is the model's.
    """

    def __init__(self, stream: TrainingStream, cost: CostMeter, masking: Any, tokenizer: Any) -> None:
        self.stream, self.cost, self.masking, self.tokenizer = stream, cost, masking, tokenizer
        self.args = cost.args
        self._references: dict[str, Any] = {}

    def check(self, model: Any, methods: Sequence[RowMethod]) -> None:
        """Loads the reference models; raises `EffptError` if methods cannot select rows of the data."""
        self.cost.reference_costs = {}
        for method in methods:
            collator = type(self.stream.collator).__name__
            if self.masking is None:
                raise EffptError(
                    f"`{method.name}` judges masked rows, so it needs a `DataCollatorForMaskedLM` and a model that "
                    f"pre-trains, not `{collator}`; remove `{method.name}` to fine-tune."
                )
            if method.remasks and self.masking is not self.stream.collator:
                raise EffptError(
                    f"`{method.name}` as set chooses the masks itself, which `{collator}` would not know of; use "
                    "a `DataCollatorForMaskedLM` alone, or another strategy."
                )
            for folder in method.references:
                self.reference_model(model, folder)
                self._charge_reference(method, folder)
        if self.masking is not None:
            self.masking.keyed = bool(methods)

    def _charge_reference(self, method: Method, folder: str) -> None:
        """Adds the training cost of a method's reference model to the run's."""
        found = record_in(folder)
        if found is None:
            logger.warning(
                "%s has no run.json, so what the model in it has cost is not known and `%s` is not charged for it.",
                folder, method.name,
            )  # fmt: skip
            return
        record, spent = found
        if has_seen(record, self.stream.dataset):
            logger.warning(
                "The model in %s, which `%s` compares with, was trained on the rows of this run, so it knows their "
                "noise as well; train it on text of its own.",
                folder, method.name,
            )  # fmt: skip
        before = self.cost.reference_costs.get(method.name, NOTHING)
        self.cost.reference_costs[method.name] = {unit: before[unit] + spent[unit] for unit in spent}

    def reference_model(self, model: Any, folder: str) -> Any:
        """Returns the frozen masked language model in `folder`, on the device; loaded once.

        Raises `EffptError` if there is none, its vocabulary is not that of `model`, or it cannot read whole rows.
        """
        if folder not in self._references:
            reference = load_reference(folder, model.config.vocab_size, self.tokenizer, self.stream.dataset)
            self._references[folder] = reference.to(self.args.device)
        return self._references[folder]

    def select(
        self, model: Any, methods: Sequence[RowMethod], run: RunContext, batches: Iterator[dict[str, Tensor]],
        number: int, device: torch.device,
    ) -> list[dict[str, Tensor]]:  # fmt: skip
        """Returns `number` micro-batches, on `device`, of the rows that the methods select one after another.

        `run` is the context of the coming step; `batches` are the loader's micro-batches.
        """
        size = self.stream.batch_rows
        left = size * number
        host = rows = self.stream.pull(batches, candidates(methods, left, run.step, run.fraction))
        for place, method in enumerate(methods):
            host = {name: values.cpu() for name, values in rows.items()} if place else host
            rows = {name: values.to(device, non_blocking=True) for name, values in rows.items()}
            later = candidates(methods[place + 1 :], left, run.step, run.fraction)
            context = SelectionContext(
                run=run,
                number=later,
                host=host,
                score_rows=partial(self.score_rows, model, method),
                count_flops=partial(self.count_flops, method, "select", later),
                reference_model=partial(self.reference_model, model),
                mask_anew=self.mask_anew,
                dataset_id=self.dataset_id,
                masking_id=self.masking_id,
            )
            noted = device.type != "cuda"
            with self.cost.meter.measure("selection"), self.cost.method_time(method, noted=noted):
                rows = method.select(model, rows, context)
        rows = on_device(rows, device)
        return [{name: values[at : at + size] for name, values in rows.items()} for at in range(0, left, size)]

    @torch.no_grad()
    def score_rows(
        self, own: Any, method: RowMethod, key: str, function: ScoreFunction, rows: Mapping[str, Tensor],
        model: Any = None, known: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Applies `function` to rows in micro-batches, charged as work of `method`."""
        judge, size = model or own, self.stream.batch_rows
        inputs, found = on_device(dict(rows), rows["input_ids"].device), []
        with self.cost.in_table(), evaluating(judge), self.cost.autocast():
            for at in range(0, len(rows["input_ids"]), size):
                batch = {name: values[at : at + size] for name, values in inputs.items()}
                if known is None:
                    found.append(function(judge, batch))
                self.cost.charge_scoring(method, key, judge, batch, function, own=model is None)
        return torch.cat(found) if known is None else known

    def count_flops(self, method: RowMethod, *key: Any) -> Any:
        """Context that charges a method's own matrix products; equal keys and numbers of rows are counted once."""
        return self.cost.count_own_flops(method, self.stream.step_rows, *key)

    def mask_anew(self, rows: Mapping[str, Tensor], rates: Any) -> dict[str, Tensor]:
        """Masks the rows again, with a masking rate by token id and the phase's share of masked tokens."""
        return self.stream.collator_now(self.masking.original(rows), token_rates=rates)

    @cached_property
    def dataset_id(self) -> str:
        """Identity of the training rows."""
        return identity_of_rows(PackedRows(self.stream.dataset))

    @property
    def masking_id(self) -> str:
        """Text of all settings that decide the masks of an example in an epoch."""
        now = self.stream.collator_now
        of = getattr(now, "collator", now)
        masking = f"{of.seed}, {of.mlm_probability}, whole words {of.whole_word}, {of.shares}"
        # Tables made before words ended at punctuation, and rates left out padding, hold the losses of other masks.
        others = of.whole_word or "document_ids" in self.stream.dataset.column_names
        return f"{masking}, 2" if others else masking

    def note_device_time(self, methods: Sequence[RowMethod]) -> None:
        """Adds the time of row selection measured by CUDA events to the first method's."""
        if self.args.device.type == "cuda" and methods:
            seconds, name = self.cost.method_seconds, methods[0].name
            seconds[name] = seconds.get(name, 0.0) + self.cost.meter.selecting
