"""The order of the data: an endless stream, a pure function of (seed, position), so any point is entered at once."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from hf_effpt.data.packing import PackedRows


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
