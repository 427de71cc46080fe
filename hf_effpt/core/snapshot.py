"""Copy of a model's tensors to rewind to, kept in checkpoints."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot(nn.Module):
    """Parameters and buffers of a model at the last call of [`take`], without modules whose `in_snapshot` is `False`.

    It is the model's submodule `snapshot`: checkpoints hold it, exports do not. Until it is taken it is zero. `model`
    must not hold one yet.
    """

    in_snapshot = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, tensor in _tensors(model):
            # Checkpoints may be saved before it is taken, and must not hold what memory held.
            self.register_buffer(_key(name), torch.zeros_like(tensor))

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Copies the tensors of `model`, including those added since the last copy."""
        for name, tensor in _tensors(model):
            held = self._buffers.get(_key(name))
            if held is not None and (held.shape, held.device) == (tensor.shape, tensor.device):
                held.copy_(tensor)
            else:
                self.register_buffer(_key(name), tensor.detach().clone())

    @property
    def is_taken(self) -> bool:
        """`True` if it holds weights."""
        return any(held.any() for held in self.buffers())

    @torch.no_grad()
    def put_back(self, model: nn.Module) -> None:
        """Restores the tensors of `model`, whose shapes must not have changed."""
        for name, tensor in _tensors(model):
            tensor.copy_(self.get_buffer(_key(name)))


def snapshot_of(model: Any) -> Snapshot:
    """Snapshot of a model with a method that `needs_snapshot`."""
    return model.snapshot


def tied_to_others(model: Any) -> list[str]:
    """Names of the buffers that a snapshot would have for tensors tied to others, which it holds once."""
    return [_key(name) for name in getattr(model, "all_tied_weights_keys", None) or {}]


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a snapshot holds: tied ones once, and none that a checkpoint lacks."""
    left_out = tuple(f"{name}." for name, part in model.named_modules() if not getattr(part, "in_snapshot", True))
    state = model.state_dict(keep_vars=True)
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # they are not tied yet in a model that is being loaded
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in state and name not in tied and not name.startswith(left_out):
            yield name, tensor


def _key(name: str) -> str:
    """Name of a buffer, which must not have dots."""
    return name.replace(".", "/")
