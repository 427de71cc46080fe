"""What heads and neurons are worth, and which stay by lot."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from hf_effpt.core.gates import Scores, importance
from hf_effpt.core.method import Run
from hf_effpt.core.modes import observing
from hf_effpt.core.ticket import Ticket

BATCHES = 8  # of training text that importance is a mean over


def michel(backbone: nn.Module, run: Run) -> Scores:
    """The importance of heads and neurons for the run's loss (Michel et al., 2019), charged to the run."""
    with observing(backbone, run.model):
        return importance(backbone, run.draw(BATCHES), lambda batch: run.model(**batch).loss, run.learning)


def at_random(ticket: Ticket, generator: np.random.Generator) -> Ticket:
    """A ticket of the same shape as `ticket`, of heads and neurons that are drawn by lot."""

    def drawn(kept: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        lots = [np.sort(generator.permutation(most)[: len(layer)]) for layer, most in zip(kept, sizes, strict=True)]
        return tuple(tuple(map(int, lot)) for lot in lots)

    heads = drawn(ticket.heads, [most for most, _ in ticket.shape])
    return Ticket(heads, drawn(ticket.neurons, [most for _, most in ticket.shape]), ticket.shape)
