"""Collective operations over the processes of a run."""

import torch
from torch import Tensor, distributed


def world() -> int:
    """Number of processes that train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def add_up(values: Tensor) -> Tensor:
    """Sums `values` over all processes, in place."""
    if world() > 1:
        distributed.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """Concatenates the tensors of all processes, of equal shapes, by rank."""
    if world() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world())]
    if not values.is_meta:  # a meta tensor has only a shape
        distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
