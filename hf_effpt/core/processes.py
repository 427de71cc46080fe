"""The processes that train together, as a method sees them."""

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
