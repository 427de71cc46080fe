"""Batch ramp: micro-batches that grow with the clock."""

from itertools import pairwise
from typing import Any

from hf_effpt.core.clock import scheduled
from hf_effpt.core.errors import EffptError


def batch_sizes(args: Any) -> dict[float, int]:
    """Rows of a micro-batch by the fraction of the clock from which they are as many; empty without a `batch_ramp`.

    Raises `EffptError` unless they are whole, grow, and end with `per_device_train_batch_size`, and there is a clock.
    """
    if args.batch_ramp is None:
        return {}
    sizes, largest = scheduled(args.batch_ramp, "training.batch_ramp"), args.per_device_train_batch_size
    rising = all(type(size) is int and size > 0 for size in sizes.values()) and all(
        below < above for below, above in pairwise(sizes.values())
    )
    if len(sizes) < 2 or not rising or max(sizes.values()) != largest:
        raise EffptError(
            f"`training.batch_ramp` is {args.batch_ramp}, but its batches must grow, by whole rows, up to "
            f"`per_device_train_batch_size`, {largest}, as in {{0: {max(1, largest // 4)}, 0.5: {largest}}}."
        )
    if args.clock is None:
        raise EffptError("`training.batch_ramp` follows the clock of a `budget`, or of `max_steps`; give one of them.")
    return sizes
