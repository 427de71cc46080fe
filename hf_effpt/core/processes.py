"""Collective operations over the processes of a run, and how one of them that fails tells the others."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from .errors import EffptError, RunStopped, first_line

CAUSE = "hf_effpt/cause"  # key in the store of all processes: why the first of them has failed
PATIENCE = 5.0  # seconds in which a failed process says why, or is seen to be gone
TOGETHER = 1.0  # seconds within which processes that wait for the same one give it up
# Of the process group at hand: itself, and the group of the same processes that talk without a device.
_host: list[Any] = [None, None]


class ProcessLost(EffptError):
    """Another process of the run has failed, so that this one cannot go on."""


def world() -> int:
    """Number of processes that train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def is_first() -> bool:
    """`True` in the process that reports for all, also before they have found each other."""
    return os.environ.get("RANK", "0") == "0"


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


def join(seconds: float) -> Any:
    """Returns the group of all processes that talk without waiting for a device; `None` if there is but one.

    All have to make the first call together. None waits for another longer than `seconds`.
    """
    if world() == 1:
        return None
    if _host[0] is not (here := distributed.group.WORLD):
        limit = timedelta(seconds=seconds)
        if distributed.get_backend() == "gloo":  # on a CPU Transformers does not hand the limit on
            distributed.distributed_c10d._set_pg_timeout(limit, here)
        _host[:] = here, distributed.new_group(backend="gloo", timeout=limit)
        _store().set(_place(distributed.get_rank()), f"{os.getpid()} {socket.gethostname()}")
        distributed.barrier(_host[1])  # from here on each knows where the others are
    return _host[1]


def sum_on_host(values: Sequence[float]) -> list[float]:
    """Sums of numbers over all processes, which have called [`join`] before; exact for whole ones below 2**53."""
    if world() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums, group=_host[1])
    return sums.tolist()


@contextmanager
def failing_together(way_out: Callable[[], str] = str) -> Iterator[None]:
    """Context of what all processes do: one that fails says why, and the others end with an error that says it, too.

    They notice when its connections close, at the latest when it has ended. `way_out()` says how to go on.

    Raises [`ProcessLost`] in the others.
    """
    if world() == 1:
        yield
        return
    try:
        yield
    except (ProcessLost, RunStopped):
        raise
    except Exception as error:
        if _is_of_connection(error):
            raise ProcessLost(" ".join([_cause(error), way_out()]).strip()) from error
        with suppress(RuntimeError):  # where the store has gone with the process that kept it
            said = first_line(error).rstrip(".")
            said = said if isinstance(error, EffptError) else f"{type(error).__name__}: {said}"
            _store().compare_set(CAUSE, "", f"Process {distributed.get_rank()} of {world()} has failed: {said}.")
        raise


def _is_of_connection(error: Exception) -> bool:
    """`True` if an operation of all processes has failed, because another process did or is late."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _cause(error: Exception) -> str:
    """Says why the first process has failed, equally in all that are left; their operation ended in `error`."""
    rank, number = distributed.get_rank(), world()
    unknown = f"Process {rank} of {number} has lost the others; the output of the first that failed says why."
    with suppress(RuntimeError):  # where the store has gone with the process that kept it
        store, found = _store(), unknown
        store.set(_waiting(rank), "")
        in_time = "timed out" in str(error).lower()
        until = time.monotonic() + (TOGETHER if in_time else PATIENCE)
        while time.monotonic() < until and not store.check([CAUSE]) and found == unknown:
            time.sleep(0.1)
            if gone := [other for other in range(number) if other != rank and _is_gone(store, other)]:
                time.sleep(0.5)  # it may have come down with another, which says so
                found = f"Process {gone[0]} of {number} was killed, or has ended without saying why."
        late = [str(other) for other in range(number) if not store.check([_waiting(other)])]
        if found == unknown and in_time and late:
            found = f"Process {', '.join(late)} of {number} did not answer within `training.ddp_timeout`."
        return store.compare_set(CAUSE, "", found).decode()
    return unknown


def _is_gone(store: Any, rank: int) -> bool:
    """`True` if a process of this machine has ended; of those of other machines nothing is known."""
    if not store.check([_place(rank)]):
        return False
    number, machine = store.get(_place(rank)).decode().split(" ", 1)
    if machine != socket.gethostname():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    return False


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


def _place(rank: int) -> str:
    return f"hf_effpt/process/{rank}"


def _waiting(rank: int) -> str:
    return f"hf_effpt/waiting/{rank}"
