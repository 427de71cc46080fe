"""Rounds of pruning, read from the events in the model's configuration.

From the start of the method, the clock is divided into equal phases, one more than there are prunings left.
"""

from typing import Any, NamedTuple

from hf_effpt.core.ledger import events_of, record

METHOD = "lottery"
BEGAN, PRUNED = "began", "pruned"


class Rounds(NamedTuple):
    """Phases of a run."""

    step: int  # optimizer steps before the first phase
    since: float  # fraction of the clock at which the first phase began
    before: int  # prunings of earlier runs
    done: int  # prunings of this run

    def until(self, rounds: int, done: int) -> float:
        """Fraction of the clock at which the phase after `done` prunings of this run ends."""
        return self.since + (1.0 - self.since) * ((done + 1) / (rounds - self.before + 1))

    def due(self, rounds: int, fraction: float) -> int:
        """Number of prunings that are due at a fraction of the clock."""
        left = rounds - self.before - self.done
        return sum(fraction >= self.until(rounds, self.done + number) for number in range(left))


def prunings(config: Any) -> int:
    """Number of prunings of the model so far."""
    return sum(event["what"].startswith(PRUNED) for event in events_of(config, METHOD))


def rounds_of(config: Any) -> Rounds | None:
    """Phases of the run; `None` before they begin."""
    found, total = None, 0
    for event in events_of(config, METHOD):
        if event["what"].startswith(BEGAN) and "span" in event:
            found = Rounds(event["step"], event["span"][0], total, 0)
        total += event["what"].startswith(PRUNED)
    return None if found is None else found._replace(done=total - found.before)


def begin(config: Any, step: int, fraction: float, rounds: int) -> None:
    """Records that the phases begin, the first with a learning-rate schedule of its own."""
    began = Rounds(step, fraction, prunings(config), 0)
    span = (fraction, began.until(rounds, 0))
    record(config, step, METHOD, f"{BEGAN} {rounds - began.before} rounds of pruning", span=span)


def note_prunings(config: Any, step: int, fraction: float, rounds: int, number: int, sparsity: float) -> None:
    """Records `number` prunings at once on the way to `sparsity`; the next phase has a schedule of its own."""
    for left in reversed(range(number)):
        now = rounds_of(config)
        assert now is not None
        at = now.before + now.done + 1
        what = f"{PRUNED} to a sparsity of {sparsity * at / rounds:.4f}, in round {at} of {rounds}"
        span = None if left else (fraction, now.until(rounds, now.done + 1))
        record(config, step, METHOD, what, span=span)
