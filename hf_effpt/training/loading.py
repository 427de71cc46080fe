"""Loading: an endless stream of training rows, and held-out rows whose masks never change."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_effpt.core.objectives import OBJECTIVES, objective_of
from hf_effpt.data.masking import DataCollatorForMaskedLM

from .saving import ExportingTrainer
from .stream import BatchStream, KeyedRows

KEYS = ("example_id", "epoch")  # what tells rows apart, and no model reads


class LoadingTrainer(ExportingTrainer):
    """A Trainer whose batches are a function of seed and position."""

    data_collator: Any
    rows_seen: int
    _step_tokens: int  # of the step under way
    picks_rows: bool  # whether methods pick rows out of more than a step holds
    _carried: dict[str, Tensor] | None  # rows taken from the stream that no step has had yet

    def get_train_dataloader(self) -> DataLoader:
        """An endless stream of batches, entered at the row where the run stands."""
        self._carried = None
        # Where methods pick rows, each process may stand within a batch of its own.
        apart = self.args.world_size > 1
        skip = self.rows_seen // self.args.world_size % self.args.train_batch_size if self.picks_rows and apart else 0
        stream = self._stream(self._data_seed, self.rows_seen - skip * self.args.world_size, skip)
        return self._loader(self.train_dataset, self.data_collator, stream)

    def draw(self, number: int) -> Iterator[dict[str, Tensor]]:
        """So many batches of training rows in another order than the run's, whose tokens are charged."""
        stream = islice(self._stream(hash((self._data_seed, self.state.global_step)), 0), number)
        for batch in self._loader(self.train_dataset, self.data_collator, stream, workers=0):
            if self.args.charge_methods:
                self._step_tokens += batch["input_ids"].numel() * self.args.world_size
            yield {
                name: value.to(self.args.device, non_blocking=True)
                for name, value in batch.items()
                if name not in KEYS
            }

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _stream(self, seed: int, start: int, skip: int = 0) -> BatchStream:
        return BatchStream(
            len(self.train_dataset),
            self.args.train_batch_size,
            seed,
            start=start,
            skip=skip,
            rank=self.args.process_index,
            world=self.args.world_size,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Held-out rows in order, 15 % of them chosen whatever the rate in training, the same at every call."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.masking is None:
            return super().get_eval_dataloader(eval_dataset)
        rows = [(0, row) for row in range(self.args.process_index, len(eval_dataset), self.args.world_size)]
        size = self.args.per_device_eval_batch_size
        batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        shares = OBJECTIVES[objective_of(self.model.config)].corruption
        return self._loader(eval_dataset, DataCollatorForMaskedLM(self.masking.tokenizer, shares=shares), batches)

    def _loader(self, dataset: Any, collator: Any, batches: Any, workers: int | None = None) -> DataLoader:
        if self.masking is None and hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset)
        workers = self.args.dataloader_num_workers if workers is None else workers
        return DataLoader(
            KeyedRows(dataset, keyed=self.masking is not None),
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=torch.Generator(),  # its own: the loader must not draw from the generator that dropout uses
        )
