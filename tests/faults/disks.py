"""Disks that fill up: small ones of their own, which are then made larger."""

import ctypes
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.runs import Outcome, World, broken, last_line, not_one_line

MS_REMOUNT = 32
PAGE = 4096  # bytes; a file takes whole ones


def mounted(folder: Path, size: int, again: bool = False) -> None:
    """Mounts a disk in memory of `size` bytes, or gives another size to the one mounted before."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags, options = MS_REMOUNT if again else 0, f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))


@contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """Context in which `folder` is a disk of so many bytes. Raises `PermissionError` if this process may not mount."""
    mounted(folder, size)
    try:
        yield
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(folder), 2)


def needed(out: Path) -> int:
    """Bytes that a run folder takes on a disk."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in out.rglob("*") if path.is_file())


def full(world: World, draw: random.Random, number: int) -> list[Outcome]:
    """Trains so many runs on disks of sizes spread over what a run needs, and goes on with more space."""
    world.launch(out := world.new()).wait()
    most, outcomes = needed(out), []
    for turn in range(number):
        size = max(PAGE, int(most * (turn + draw.random()) / number))
        out = world.new()
        with disk(out.parent, size):
            if outcome := on_disk(world, out, size, most):
                outcomes.append(outcome)
    return outcomes


def on_disk(world: World, out: Path, size: int, most: int) -> Outcome | None:
    """Outcome of a run on a disk of `size` bytes; `None` if it fits."""
    process = world.launch(out)
    code, what = process.wait(), f"a disk of {size:,} bytes"
    if code == 0:
        return None
    told, done = last_line(process.said), world.progress(out).steps
    wrong = not_one_line(process.said, code) or broken(out)
    if not wrong and "disk is full" not in told:
        wrong = f"does not say that the disk is full: {told}"
    mounted(out.parent, 3 * most, again=True)
    outcome = world.go_on(out, what, done)
    outcome.said.insert(0, told)
    outcome.failure = outcome.failure or wrong
    return outcome
