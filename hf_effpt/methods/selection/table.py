"""Losses of a reference model on disk, computed once per example, epoch and mask.

N rows of a pool.
"""

import hashlib
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import create_once, read_json, write_json

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WAITING = 64  # steps between writes, which wait for the device


class IrreducibleLosses:
    """Folder with an fp32 array for each epoch and masking, one loss per row of the dataset, filled as they come.

    It is made if need be, for the dataset that `data` identifies and the reference model in the folder `model`. Raises
    an `EffptError` if it holds other content.
    """

    def __init__(self, folder: Path, rows: int, data: str, model: Path) -> None:
        self.folder, self.rows = folder, rows
        self._files: dict[str, np.memmap] = {}
        self._new: list[tuple[str, np.ndarray, np.ndarray, Tensor]] = []
        identity, said = {"data": data, "model": _hash_of(model)}, folder / "table.json"
        if not said.is_file():
            # Created atomically with its identity, since processes may race; an existing folder stays.
            folder.parent.mkdir(parents=True, exist_ok=True)
            create_once(folder, lambda made: write_json(made / said.name, identity), folder=True)
        try:
            before = read_json(said)
        except (OSError, ValueError) as error:
            raise EffptError(
                f"`selection.table` {str(folder)!r} is there, and no table of losses; give a new folder."
            ) from error
        if before != identity:
            raise EffptError(
                f"`selection.table` {str(folder)!r} holds the losses of another model or dataset ({before}, now "
                f"{identity}); give another folder, or leave it out."
            )

    def _file(self, masks: str, epoch: int) -> np.memmap:
        name = f"epoch-{epoch}-{zlib.crc32(masks.encode()):08x}.npy"
        if name not in self._files:
            path = self.folder / name
            if not path.is_file():
                create_once(path, lambda made: np.save(made, np.full(self.rows, np.nan, np.float32)))
            self._files[name] = np.lib.format.open_memmap(path, mode="r+")
        return self._files[name]

    def read(self, masks: str, ids_N: np.ndarray, epochs_N: np.ndarray) -> np.ndarray | None:
        """Losses of rows, fp32 of shape `(N,)`; `None` unless all are known."""
        found_N = np.empty(len(ids_N), np.float32)
        for epoch in np.unique(epochs_N):
            here_N = epochs_N == epoch
            found_N[here_N] = self._file(masks, int(epoch))[ids_N[here_N]]
        return None if np.isnan(found_N).any() else found_N

    def add(self, masks: str, ids_N: np.ndarray, epochs_N: np.ndarray, losses_N: Tensor) -> None:
        """Buffers new losses, and writes them once there are enough."""
        self._new.append((masks, ids_N, epochs_N, losses_N))
        if len(self._new) >= WAITING:
            self.write()

    def write(self) -> None:
        """Writes the buffered losses."""
        for masks, ids_N, epochs_N, losses_N in self._new:
            on_host_N = losses_N.cpu().numpy()
            for epoch in np.unique(epochs_N):
                here_N = epochs_N == epoch
                self._file(masks, int(epoch))[ids_N[here_N]] = on_host_N[here_N]
        self._new.clear()
        for file in self._files.values():
            file.flush()


def _hash_of(model: Path) -> str:
    """Hash of the weights in the folder of a model."""
    for name in WEIGHTS:
        if (model / name).is_file():
            with (model / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    raise EffptError(f"`selection.holdout` {str(model)!r} has none of {', '.join(WEIGHTS)}; give a folder of a model.")
