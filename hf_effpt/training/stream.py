"""The order of the data: an endless stream, a pure function of (seed, position), so any point is entered at once."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hf_effpt.data.packing import PackedRows

KEYS = ("example_id", "epoch")  # tell rows apart; no model reads them


@lru_cache(maxsize=2)
def permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in `epoch`."""
    generator = np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, epoch]))
    return generator.permutation(num_rows)


class BatchStream(Sampler):
    """Yields the micro-batches of one process without end; each is an array of (epoch, row) pairs.

    Every pass over the data is a new permutation, and batches run on over the end of a pass, so that no row is left
    out. The global batch is cut into equal parts for the processes: two of them see what one with twice the batch
    would see.

    Args:
        num_rows (`int`): rows of the dataset.
        batch_size (`int`): rows of a micro-batch of one process.
        seed (`int`): of the permutations.
        start (`int`, *optional*, defaults to 0): position in the stream, in rows of all processes, to begin at.
        skip (`int`, *optional*, defaults to 0): rows of the first batch, fewer than it has, that are left out of it.
        rank, world (`int`, *optional*): number of this process and of all.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
        skip: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.start, self.skip, self.rank, self.world = start, skip, rank, world

    def __iter__(self) -> Iterator[np.ndarray]:
        skip = self.skip
        for first in count(self.start + self.rank * self.batch_size, self.world * self.batch_size):
            yield self.keys(np.arange(first + skip, first + self.batch_size))
            skip = 0

    def keys(self, positions: np.ndarray) -> np.ndarray:
        """The (epoch, row) pairs, of shape `(positions, 2)`, at these positions of the stream."""
        epochs, within = np.divmod(positions, self.num_rows)
        rows = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permutation(self.num_rows, self.seed, int(epoch))[within[here]]
        return np.stack([epochs, rows], axis=1)


class KeyedRows(Dataset):
    """Rows of a dataset fetched a batch at a time by (epoch, row) pairs, with both passed on to the collator.

    Args:
        dataset: packed rows, or any map-style dataset of examples.
        keyed (`bool`): whether the collator takes `example_id` and `epoch`.
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
    """The rows of a run, as a function of seed and position, and the loaders that yield them.

    Args:
        args ([`EffptTrainingArguments`]): of the run.
        dataset: the training rows.
        collator: makes batches of them.
        keyed (`bool`): `True` if the collator takes `example_id` and `epoch`.
    """

    def __init__(self, args: Any, dataset: Any, collator: Any, keyed: bool) -> None:
        self.args, self.dataset, self.collator, self.keyed = args, dataset, collator, keyed
        self.begin(0)

    def begin(self, rows_seen: int) -> None:
        """Stands at a position, in rows of all processes."""
        self.rows_seen, self.step_rows = rows_seen, 0
        self._carried: dict[str, Tensor] | None = None  # rows taken from the loader that no step has had yet

    @property
    def step_rows_seen(self) -> int:
        """Rows that all processes have taken in the last optimizer step."""
        return self.step_rows * self.args.world_size

    @property
    def seed(self) -> int:
        """Seed of the order of the rows."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def loader(self, may_carry: bool) -> DataLoader:
        """An endless stream of micro-batches, entered at the row where the run stands.

        Args:
            may_carry (`bool`): `True` if steps may end within a micro-batch, as where methods select rows.
        """
        self._carried = None
        # Each process may then stand within a batch of its own.
        apart = may_carry and self.args.world_size > 1
        skip = self.rows_seen // self.args.world_size % self.args.train_batch_size if apart else 0
        batches = self._batches(self.seed, self.rows_seen - skip * self.args.world_size, skip)
        return self.loader_of(self.dataset, self.collator, batches)

    def _batches(self, seed: int, start: int, skip: int = 0) -> BatchStream:
        return BatchStream(
            len(self.dataset), self.args.train_batch_size, seed,
            start=start, skip=skip, rank=self.args.process_index, world=self.args.world_size,
        )  # fmt: skip

    def draw(self, number: int, step: int) -> Iterator[dict[str, Tensor]]:
        """Micro-batches on the device in another order than the run's, a function of seed and optimizer step."""
        batches = islice(self._batches(hash((self.seed, step)), 0), number)
        for batch in self.loader_of(self.dataset, self.collator, batches, workers=0):
            yield on_device(batch, self.args.device)

    def take(self, batches: Iterator[dict[str, Tensor]], number: int, device: torch.device) -> list[dict[str, Tensor]]:
        """The next micro-batches, on the device."""
        self.step_rows = number * self.args.train_batch_size
        return [
            {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            for batch in islice(batches, number)
        ]

    def pull(self, batches: Iterator[dict[str, Tensor]], number: int) -> dict[str, Tensor]:
        """The next `number` rows, on the CPU; the rest of a batch waits for the next call."""
        self.step_rows = number
        parts, have = ([self._carried], len(self._carried["input_ids"])) if self._carried else ([], 0)
        while have < number:
            parts.append(next(batches))
            have += len(parts[-1]["input_ids"])
        rows = parts[0] if len(parts) == 1 else _joined(parts)
        self._carried = {name: values[number:] for name, values in rows.items()} if have > number else None
        return {name: values[:number] for name, values in rows.items()}

    def loader_of(self, dataset: Any, collator: Any, batches: Any, workers: Any = None) -> DataLoader:
        """A loader of batches of (epoch, row) pairs of a dataset."""
        workers = self.args.dataloader_num_workers if workers is None else workers
        return DataLoader(
            KeyedRows(dataset, keyed=self.keyed),
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            generator=torch.Generator(),  # its own: the loader must not draw from the generator that dropout uses
        )


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The entries of a batch that a model reads, on the device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items() if name not in KEYS}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    pinned = any(values.is_pinned() for values in parts[0].values())  # which a copy no longer is
    return {name: values.pin_memory() for name, values in rows.items()} if pinned else rows
