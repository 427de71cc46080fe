"""Where a run is in its rounds of pruning, read from the events in the model's configuration.

From where it begins, the clock is divided into equal phases of training, one more than there are prunings left.
"""

from typing import Any, NamedTuple

from hf_effpt.core.ledger import record

METHOD = "lottery"
BEGAN, PRUNED = "began", "pruned"


class Rounds(NamedTuple):
    """The phases of a run: where they began, and what came before.

    Args:
        step (`int`): optimizer steps that were done when they began.
        since (`float`): the fraction of the clock at which they began.
        before (`int`): prunings of earlier runs.
        done (`int`): prunings of this one.
    """

    step: int
    since: float
    before: int
    done: int

    def until(self, rounds: int, done: int) -> float:
        """The fraction of the clock at which the phase after `done` prunings of this run ends."""
        return self.since + (1.0 - self.since) * ((done + 1) / (rounds - self.before + 1))

    def due(self, rounds: int, fraction: float) -> int:
        """How many prunings are due at a fraction of the clock."""
        left = rounds - self.before - self.done
        return sum(fraction >= self.until(rounds, self.done + number) for number in range(left))


def prunings(config: Any) -> int:
    """How often the model has been pruned."""
    return sum(event["method"] == METHOD and event["what"].startswith(PRUNED) for event in config.events or [])


def rounds_of(config: Any) -> Rounds | None:
    """Where the run is, or `None` where its phases have not begun."""
    own = [event for event in config.events or [] if event["method"] == METHOD]
    begun = [place for place, event in enumerate(own) if event["what"].startswith(BEGAN) and "span" in event]
    if not begun:
        return None
    before = sum(event["what"].startswith(PRUNED) for event in own[: begun[-1]])
    event = own[begun[-1]]
    return Rounds(event["step"], event["span"][0], before, prunings(config) - before)


def begin(config: Any, step: int, fraction: float, rounds: int) -> None:
    """Notes that the phases begin, the first with a schedule of its own."""
    began = Rounds(step, fraction, prunings(config), 0)
    span = (fraction, began.until(rounds, 0))
    record(config, step, METHOD, f"{BEGAN} {rounds - began.before} rounds of pruning", span=span)


def note_prunings(config: Any, step: int, fraction: float, rounds: int, number: int, sparsity: float) -> None:
    """Notes so many prunings at once, after which the next phase has a schedule of its own.

    Args:
        sparsity (`float`): that of the last of all `rounds`.
    """
    for left in reversed(range(number)):
        now = rounds_of(config)
        assert now is not None
        at = now.before + now.done + 1
        what = f"{PRUNED} to a sparsity of {sparsity * at / rounds:.4f}, in round {at} of {rounds}"
        span = None if left else (fraction, now.until(rounds, now.done + 1))
        record(config, step, METHOD, what, span=span)
