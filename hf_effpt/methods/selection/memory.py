"""Losses of rows when they were last trained on, for strategies that score without a forward pass.

N rows of a pool, R rows of the dataset.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from hf_effpt.core.errors import EffptError
from hf_effpt.core.precision import KeepsPrecision

from .picking import TIES, chance
from .strategy import Pool

NAME = "selection_losses.npz"  # file in the folder of a run
RENEWED = 64  # steps between updates of the mean of all losses; fewer at first and after a change


class Memory(KeepsPrecision):
    """Last loss of each row of the dataset with its step (-1 for none), and the mean of all losses.

    Losses of more than `max_age` steps ago, if given, are ignored.
    """

    losses: Tensor
    steps: Tensor
    mean: Tensor

    def __init__(self, rows: int, max_age: int | None) -> None:
        super().__init__()
        self.max_age = max_age
        self.register_buffer("losses", torch.zeros(rows, dtype=torch.float32))
        self.register_buffer("steps", torch.full((rows,), -1, dtype=torch.int32))
        self.register_buffer("mean", torch.full((), torch.inf, dtype=torch.float64))

    def begin(self) -> None:
        """Forgets everything."""
        self.losses.zero_()
        self.steps.fill_(-1)
        self.mean.fill_(torch.inf)

    def learn(self, pool: Pool, losses_N: Tensor, changed: int) -> None:
        """Stores the losses of rows that were trained on; of a row twice in a step, the higher one."""
        # Two writes to one place are not deterministic on every device, and processes would diverge.
        self.losses.scatter_reduce_(0, pool.ids_N, losses_N.float(), "amax", include_self=False)
        self.steps[pool.ids_N] = pool.step
        since = pool.step - changed
        if since % RENEWED == 0 or since.bit_count() == 1:  # slow for a large dataset
            known_R = self._counts(self.steps, pool.step, changed)
            self.mean.copy_((self.losses.double() * known_R).sum() / known_R.sum().clamp(min=1))

    def _counts(self, steps: Tensor, step: int, changed: int) -> Tensor:
        """`True` where losses of `steps` still count in step `step`: recent, and of the present architecture."""
        oldest = max(changed, 0 if self.max_age is None else step - self.max_age)
        return (steps >= oldest) & (steps >= 0)

    def read(self, pool: Pool, changed: int) -> Tensor:
        """Losses of rows, fp64 of shape `(N,)`; rows without one are above the others, in random order.

        `changed` is the step after which the architecture changed last.
        """
        known_N, losses_N = self._counts(self.steps[pool.ids_N], pool.step, changed), self.losses[pool.ids_N].double()
        above = torch.where(known_N, losses_N, 0.0).max()
        return torch.where(known_N, losses_N, above + 1.0 + chance(pool, TIES))

    def save(self, folder: Path, identity: str) -> None:
        """Writes the losses into a run's folder, for other runs on the same rows."""
        losses, steps = self.losses.cpu().numpy(), self.steps.cpu().numpy()
        np.savez_compressed(folder / NAME, identity=np.array(identity), losses=losses, steps=steps)

    def load(self, table: str, identity: str) -> None:
        """Loads the losses of another run on the same rows, as of step 0."""
        try:
            with Path(table).open("rb") as file, np.load(file, allow_pickle=False) as found:
                losses, steps, of = found["losses"], found["steps"], str(found["identity"])
        except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile) as error:
            raise EffptError(
                f"`selection.table` {table!r} is no table of losses ({str(error).splitlines()[0]}); give the "
                f"`{NAME}` that a run with `scorer: stale` has left in its folder."
            ) from error
        if of != identity or len(losses) != len(self.losses):
            raise EffptError(
                f"`selection.table` {table!r} is of other rows: it has {len(losses):,} ({of}), and the data of this "
                f"run are {len(self.losses):,} ({identity}); use the table of a run on the same text, tokenizer and "
                "`sequence_length`, or leave it out."
            )
        self.losses.copy_(torch.from_numpy(losses))
        self.steps.copy_(torch.from_numpy(np.where(steps >= 0, 0, -1).astype(np.int32)))
