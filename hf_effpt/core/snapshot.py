"""Copy of a model's tensors to rewind to, kept in checkpoints."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot(nn.Module):
    """Parameters and buffers of a model at the last call of [`take`], without modules whose `in_snapshot` is `False`.

    It is the model's submodule `snapshot`: checkpoints hold it, exports do not. `model` must not hold one yet.
    """

    in_snapshot = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, tensor in _tensors(model):
            self.register_buffer(_key(name), torch.empty_like(tensor))

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Copies the tensors of `model`, including those added since the last copy."""
        for name, tensor in _tensors(model):
            held = self._buffers.get(_key(name))
            if held is not None and (held.shape, held.device) == (tensor.shape, tensor.device):
                held.copy_(tensor)
            else:
                self.register_buffer(_key(name), tensor.detach().clone())

    @torch.no_grad()
    def put_back(self, model: nn.Module) -> None:
        """Restores the tensors of `model`, whose shapes must not have changed."""
        for name, tensor in _tensors(model):
            tensor.copy_(self.get_buffer(_key(name)))


def snapshot_of(model: Any) -> Snapshot:
    """Snapshot of a model with a method that `needs_snapshot`."""
    return model.snapshot


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a snapshot holds: tied ones once, and none that a checkpoint lacks."""
    left_out = tuple(f"{name}." for name, part in model.named_modules() if not getattr(part, "in_snapshot", True))
    state = model.state_dict(keep_vars=True)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in state and not name.startswith(left_out):
            yield name, tensor


def _key(name: str) -> str:
    """Name of a buffer, which must not have dots."""
    return name.replace(".", "/")
