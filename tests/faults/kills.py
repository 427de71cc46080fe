"""Kills of a run, at random times and while it writes, and signals that ask it to stop."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from hf_effpt.core.errors import RunStopped
from hf_effpt.hub.folders import checkpoints_in, step_of
from tests.faults.runs import EVERY, STEPS, Outcome, World, broken, last_line

MOST = 100.0  # seconds that a run is waited for


def until(reached: Callable[[], bool]) -> None:
    """Waits until something is so, without much to do."""
    end = time.monotonic() + MOST
    while not reached() and time.monotonic() < end:
        time.sleep(0.005)


def at_random_times(world: World, draw: random.Random, number: int) -> list[Outcome]:
    """Kills so many runs, each third one at a time since its start, the others since their first step."""
    outcomes: list[Outcome] = []
    while len(outcomes) < number:
        since_start = len(outcomes) % 3 == 0
        out, after = world.new(), draw.uniform(0, world.seconds / (1 if since_start else 2))
        process = world.launch(out)
        if not since_start:
            until(lambda out=out: world.progress(out).steps > 0)
        time.sleep(after)
        process.kill()
        if process.wait() == -signal.SIGKILL:  # or it had ended
            since = "start" if since_start else "first step"
            outcomes.append(killed(world, out, f"SIGKILL {after:.2f} s after the {since}"))
    return outcomes


def while_writing(world: World, draw: random.Random, number: int) -> list[Outcome]:
    """Kills so many runs, each before another of the writes of its checkpoints and its export."""
    outcomes = []
    for write in sorted(draw.sample(range(1, world.writes + 1), min(number, world.writes))):
        out = world.new()
        process = world.launch(out, die_at=write)
        if (code := process.wait()) == -signal.SIGKILL:
            outcomes.append(killed(world, out, f"SIGKILL before write {write} of {world.writes}"))
        else:
            what = f"exit code {code} instead of a kill before write {write}"
            outcomes.append(Outcome(what, failure=last_line(process.said)))
    return outcomes


def killed(world: World, out: Path, what: str) -> Outcome:
    """Outcome of a run that was killed: its checkpoints are whole, and it goes on from the last of them."""
    done, wrong = world.progress(out).steps, broken(out)
    outcome = world.go_on(out, what, done)
    outcome.failure = outcome.failure or wrong
    return outcome


def by_signal(world: World, draw: random.Random, number: int) -> list[Outcome]:
    """Asks so many runs to stop, by SIGTERM and SIGINT in turn, and goes on with them; no step is to be lost."""
    outcomes = []
    for turn in range(number):
        kind = (signal.SIGTERM, signal.SIGINT)[turn % 2]
        out, step = world.new(), draw.randrange(1, STEPS - EVERY)
        process = world.launch(out)
        until(lambda out=out, step=step: world.progress(out).steps >= step)
        os.kill(process.pid, kind)
        code = process.wait()
        what = f"{kind.name} after step {step}"
        if code != RunStopped.exit_code:
            outcomes.append(Outcome(what, failure=f"exit code {code}: {last_line(process.said)}"))
            continue
        done, wrong = world.progress(out).steps, broken(out)
        if step_of(checkpoints_in(out)[-1]) != done:
            wrong = f"no checkpoint of the last step, {done}"
        outcome = world.go_on(out, what, done)
        outcome.failure = outcome.failure or wrong or (f"{outcome.lost} steps lost" if outcome.lost else None)
        outcomes.append(outcome)
    return outcomes
