"""The processes that train together, as a method sees them."""

import torch
from torch import Tensor, distributed


def world() -> int:
    """The number of processes that train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def add_up(values: Tensor) -> Tensor:
    """The sum of what all processes hold, in place; alone, what it is."""
    if world() > 1:
        distributed.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """What all processes hold, of equal shapes, one behind the other in their order; alone, what it is."""
    if world() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world())]
    if not values.is_meta:  # of which there is only the shape
        distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
