"""A copy of all that a model holds, as it was at one moment, to rewind to; checkpoints keep it."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot(nn.Module):
    """The parameters and buffers of a model as they were when [`take`] was called, but for those of some modules.

    It is part of the model, so that a checkpoint has it and a resumed run rewinds to the same weights; it is not
    exported.

    Args:
        model (`nn.Module`): it must not hold the snapshot yet.
        without (`tuple[str, ...]`): parts of the names of what is not rewound.
    """

    def __init__(self, model: nn.Module, without: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.without = without
        for name, tensor in self._tensors(model):
            self.register_buffer(_key(name), torch.empty_like(tensor))

    def _tensors(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """What of `model` a snapshot holds; what is tied is there once, and what no checkpoint holds is not there."""
        state = model.state_dict(keep_vars=True)
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            spared = name.startswith(f"{NAME}.") or any(part in name for part in self.without)
            if name in state and not spared:
                yield name, tensor

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Copies the tensors of `model` as they are now, with those that it has been given since."""
        for name, tensor in self._tensors(model):
            held = self._buffers.get(_key(name))
            if held is not None and (held.shape, held.device) == (tensor.shape, tensor.device):
                held.copy_(tensor)
            else:
                self.register_buffer(_key(name), tensor.detach().clone())

    @torch.no_grad()
    def put_back(self, model: nn.Module) -> None:
        """Gives `model` the tensors it had; their shapes must still be those."""
        for name, tensor in self._tensors(model):
            tensor.copy_(self.get_buffer(_key(name)))


NAME = "snapshot"  # of the attribute of the model that holds one


def snapshot_of(model: Any) -> Snapshot:
    """The snapshot of a model with a method that `needs_snapshot`."""
    return getattr(model, NAME)


def _key(name: str) -> str:
    """The name of a buffer, which must not have dots."""
    return name.replace(".", "/")
