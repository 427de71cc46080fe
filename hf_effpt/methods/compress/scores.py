"""Random tickets, the control of those drawn by importance."""

from collections.abc import Sequence

import numpy as np

from hf_effpt.core.ticket import Ticket


def at_random(ticket: Ticket, generator: np.random.Generator) -> Ticket:
    """Ticket of the same widths as `ticket`, of heads and neurons drawn at random."""

    def drawn(kept: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        lots = [np.sort(generator.permutation(most)[: len(layer)]) for layer, most in zip(kept, sizes, strict=True)]
        return tuple(tuple(map(int, lot)) for lot in lots)

    heads = drawn(ticket.heads, [most for most, _ in ticket.shape])
    return Ticket(heads, drawn(ticket.neurons, [most for _, most in ticket.shape]), ticket.shape)
