"""Order of the data: an endless stream, computed from (seed, position), so that it resumes anywhere."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hf_effpt.core.document_layout import DocumentLayout
from hf_effpt.data.next_tokens import DataCollatorForNextTokens
from hf_effpt.data.packing import PackedRows

from .phases import Phase, apply_phase, phase_at
from .stopping import ignore_interrupts

KEYS = ("example_id", "epoch")  # identify rows; not inputs of the model


@lru_cache(maxsize=2)
def permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the rows in `epoch`."""
    generator = np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, epoch]))
    return generator.permutation(num_rows)


@dataclass(eq=False)
class BatchStream(Sampler):
    """Yields micro-batches of one process without end, each an array of (epoch, row) pairs.

    Each pass is a new permutation. Batches may span two passes, so that no row is left out. Two processes see the rows
    that one with twice the batch would see.

    Args:
        num_rows (`int`): rows of the dataset.
        batch_size (`int`): rows of a micro-batch of one process.
        seed (`int`): seed of the permutations.
        start (`int`, *optional*, defaults to 0): first position, in rows of all processes.
        skip (`int`, *optional*, defaults to 0): rows to leave out of the first batch, below `batch_size`.
        rank, world (`int`, *optional*): index of this process and number of all.
    """

    num_rows: int
    batch_size: int
    seed: int
    _: KW_ONLY
    start: int = 0
    skip: int = 0
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[np.ndarray]:
        skip = self.skip
        for first in count(self.start + self.rank * self.batch_size, self.world * self.batch_size):
            yield self.keys(np.arange(first + skip, first + self.batch_size))
            skip = 0

    def keys(self, positions: np.ndarray) -> np.ndarray:
        """(epoch, row) pairs, of shape `(positions, 2)`, at these positions of the stream."""
        epochs, within = np.divmod(positions, self.num_rows)
        rows = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permutation(self.num_rows, self.seed, int(epoch))[within[here]]
        return np.stack([epochs, rows], axis=1)


class KeyedRows(Dataset):
    """Rows of a packed or map-style dataset, fetched in batches by (epoch, row) pairs.

    If `keyed` is `True`, adds `example_id` and `epoch` for the collator.
    """

    def __init__(self, dataset: Any, keyed: bool) -> None:
        self.dataset, self.keyed = dataset, keyed
        self.packed = PackedRows(dataset) if keyed and PackedRows.fits(dataset) else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: np.ndarray) -> Any:
        epochs, rows = np.asarray(keys).T
        if self.packed is not None:
            return {**self.packed.rows(rows), "example_id": rows, "epoch": epochs}
        examples = [self.dataset[int(row)] for row in rows]
        if not self.keyed:
            return examples
        own = zip(examples, rows.tolist(), epochs.tolist(), strict=True)
        return [{**example, "example_id": row, "epoch": epoch} for example, row, epoch in own]


class TrainingStream:
    """Rows of a run, by seed and position, and the loaders that yield them, in batches made by `collator`.

    `phases` are the run's ([`Phase`]); `keyed` is `True` if the collator takes `example_id` and `epoch`.
    """

    def __init__(self, args: Any, phases: Sequence[Phase], collator: Any, keyed: bool) -> None:
        self.args, self.phases, self.collator, self.keyed = args, phases, collator, keyed
        self.begin(0)

    def begin(self, rows_seen: int, phase: int = 0) -> None:
        """Moves to a position of a phase, in rows of all processes, `rows_seen` from its start."""
        self.phase, self.dataset = phase, self.phases[phase].rows
        # Rows of a micro-batch of one process, of as many tokens whatever their length.
        self.batch_rows = self.rows_like(self.phases[phase].batch_size or self.args.train_batch_size, self.dataset)
        self.rows_seen, self.step_rows = rows_seen, 0
        self._carried: dict[str, Tensor] | None = None  # rows loaded but not yet used by a step

    def replace(self, dataset: Any, collator: Any) -> None:
        """Has a run of one phase take its rows from `dataset`, and all runs make batches by `collator`."""
        if len(self.phases) == 1:
            self.dataset = dataset
        self.collator = collator

    def enter(self, fraction: float, model: Any) -> None:
        """Begins the phase of this fraction of the clock, unless it runs already."""
        if len(self.phases) > 1 and (phase := phase_at(self.phases, fraction)) != self.phase:
            self.begin(self.rows_seen if self.phases[phase].rows is self.dataset else 0, phase)
        if self.phases[self.phase].rotary_base is not None:
            apply_phase(self.phases[self.phase], model.backbone)

    def rows_like(self, size: int, dataset: Any) -> int:
        """Number of rows of `dataset` with as many tokens as `size` of the first phase, at least 1."""
        if len(self.phases) == 1 or not PackedRows.fits(dataset):
            return size
        return max(1, size * self.phases[0].length // PackedRows(dataset).sequence_length)

    @property
    def step_rows_seen(self) -> int:
        """Rows that all processes took in the last optimizer step."""
        return self.step_rows * self.args.world_size

    @property
    def seed(self) -> int:
        """Seed of the order of the rows."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def loader(self, may_carry: bool) -> "DataLoader | PhasedLoader":
        """Returns an endless loader of micro-batches from the current row.

        `may_carry` is `True` if steps may end within a micro-batch, as with row selection.
        """
        return self.loader_of_phase(may_carry) if len(self.phases) == 1 else PhasedLoader(self, may_carry)

    def loader_of_phase(self, may_carry: bool = False) -> DataLoader:
        """Returns an endless loader of micro-batches of this phase from the current row."""
        self._carried = None
        # Each process may then be within a micro-batch.
        apart = may_carry and self.args.world_size > 1
        skip = self.rows_seen // self.args.world_size % self.batch_rows if apart else 0
        batches = self._batches(self.seed, self.rows_seen - skip * self.args.world_size, skip)
        return self.loader_of(self.dataset, self.collator_now, batches)

    @property
    def collator_now(self) -> Any:
        """The collator with what this phase has of its own: a share of masked tokens, or next tokens."""
        phase = self.phases[self.phase]
        if phase.is_causal:
            return changed(self.collator, DataCollatorForNextTokens)
        rate = phase.mlm_probability
        return self.collator if rate is None else changed(self.collator, partial(masking_at, rate=rate))

    def _batches(self, seed: int, start: int, skip: int = 0) -> BatchStream:
        return BatchStream(
            len(self.dataset), self.batch_rows, seed,
            start=start, skip=skip, rank=self.args.process_index, world=self.args.world_size,
        )  # fmt: skip

    def rows_at(self, phase: int, first: int, number: int) -> list[int]:
        """Rows at `number` positions of a phase, from the position `first` on."""
        rows = self.dataset if phase == self.phase else self.phases[phase].rows
        positions = np.arange(first, first + number)
        return BatchStream(len(rows), number, self.seed).keys(positions)[:, 1].tolist()

    def draw(self, number: int, step: int) -> Iterator[dict[str, Tensor]]:
        """Yields micro-batches on the device in another order than the run's, by seed and step."""
        batches = islice(self._batches(hash((self.seed, step)), 0), number)
        for batch in self.loader_of(self.dataset, self.collator_now, batches, workers=0):
            yield on_device(batch, self.args.device)

    def take(self, batches: Iterator[dict[str, Tensor]], number: int, device: torch.device) -> list[dict[str, Any]]:
        """Returns the next `number` micro-batches, on the device; `documents` of isolated rows stay on the host."""
        self.step_rows = number * self.batch_rows
        return [
            {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            | ({"documents": DocumentLayout.of(batch["document_ids"])} if "document_ids" in batch else {})
            for batch in islice(batches, number)
        ]

    def pull(self, batches: Iterator[dict[str, Tensor]], number: int) -> dict[str, Tensor]:
        """Returns the next `number` rows, on the CPU; keeps the rest of a batch for the next call."""
        self.step_rows = number
        parts, have = ([self._carried], len(self._carried["input_ids"])) if self._carried else ([], 0)
        while have < number:
            parts.append(next(batches))
            have += len(parts[-1]["input_ids"])
        rows = parts[0] if len(parts) == 1 else _joined(parts)
        self._carried = {name: values[number:] for name, values in rows.items()} if have > number else None
        return {name: values[:number] for name, values in rows.items()}

    def held_out(self, dataset: Any, collator: Any) -> DataLoader:
        """Returns a loader of this process's rows of a dataset to evaluate on, in order."""
        rows = [(0, row) for row in range(self.args.process_index, len(dataset), self.args.world_size)]
        size = self.rows_like(self.args.per_device_eval_batch_size, dataset)
        return self.loader_of(dataset, collator, [rows[first : first + size] for first in range(0, len(rows), size)])

    def loader_of(self, dataset: Any, collator: Any, batches: Any, workers: Any = None) -> DataLoader:
        """Returns a loader of a dataset; `batches` yields (epoch, row) pairs."""
        workers = self.args.dataloader_num_workers if workers is None else workers
        return DataLoader(
            KeyedRows(dataset, keyed=self.keyed),
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=workers,
            worker_init_fn=ignore_interrupts if workers else None,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=torch.Generator(),  # the loader must not draw from dropout's generator
        )


class PhasedLoader:
    """Endless loader of the micro-batches of a [`TrainingStream`], of whichever phase it is in."""

    def __init__(self, stream: TrainingStream, may_carry: bool) -> None:
        self.stream, self.may_carry = stream, may_carry

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            phase, batches = self.stream.phase, iter(self.stream.loader_of_phase(self.may_carry))
            while self.stream.phase == phase:
                yield next(batches)


def changed(collator: Any, change: Callable[[Any], Any]) -> Any:
    """A collator with `change` in place of the one that masks, which it may wrap."""
    if "collator" not in vars(collator):
        return change(collator)
    own = copy(collator)
    own.collator = changed(own.collator, change)
    return own


def masking_at(collator: Any, rate: float) -> Any:
    """Copy of a masking collator that masks this share of the tokens."""
    own = copy(collator)
    own.mlm_probability = rate
    return own


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Moves the entries of a batch that a model reads to the device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items() if name not in KEYS}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if any("attention_mask" in part for part in parts):  # a batch without padding has none
        parts = [{"attention_mask": torch.ones_like(part["input_ids"]), **part} for part in parts]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    pinned = any(values.is_pinned() for values in parts[0].values())  # `cat` loses pinning
    return {name: values.pin_memory() for name, values in rows.items()} if pinned else rows
