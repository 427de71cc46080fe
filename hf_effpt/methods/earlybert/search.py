"""What a search for a ticket has seen so far, and the ticket it has come to; all of it is in checkpoints."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_effpt.core.ticket import Ticket

NAME = "ticket_search"  # of the attribute of the backbone
NOT_YET = -1


class Search(nn.Module):
    """The last masks of heads and neurons, first to last, and the bits of the ticket once it is drawn.

    Their shapes are those of the whole layers, before and after the cut: `head_masks` of shape
    `(window, layers, heads)`, `neuron_masks` of shape `(window, layers, neurons)`, and the ticket's `heads` and
    `neurons` without the first. `count` is the number of masks so far, and `began` that of optimizer steps before the
    search.

    Args:
        window (`int`): masks that are compared.
        layers, heads, neurons (`int`): that are allocated; heads and neurons of one layer.
        begun (`bool`): whether the search begins with the run.
    """

    head_masks: Tensor
    neuron_masks: Tensor
    heads: Tensor
    neurons: Tensor
    count: Tensor
    began: Tensor

    def __init__(self, window: int, layers: int, heads: int, neurons: int, begun: bool) -> None:
        super().__init__()
        self._first = 0 if begun else NOT_YET
        self._since: int | None = None  # what `began` says, so that no step has to wait for the device
        self.register_buffer("head_masks", torch.zeros(window, layers, heads, dtype=torch.bool))
        self.register_buffer("neuron_masks", torch.zeros(window, layers, neurons, dtype=torch.bool))
        self.register_buffer("heads", torch.ones(layers, heads, dtype=torch.bool))
        self.register_buffer("neurons", torch.ones(layers, neurons, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("began", torch.full((), self._first, dtype=torch.long))

    def reset_missing_parameters(self) -> None:
        """Has seen nothing yet, where the weights to load are of no search."""
        if not getattr(self.count, "_is_hf_initialized", False) and not self.count.is_meta:
            for kept in (self.heads, self.neurons):
                kept.fill_(True)
            self.forget()

    def forget(self) -> None:
        """Has seen no masks, and begun only if it begins with the run."""
        for seen in (self.head_masks, self.neuron_masks, self.count):
            seen.zero_()
        self.began.fill_(self._first)
        self._since = None

    @property
    def since(self) -> int | None:
        """How many steps were done when the search began; `None` before."""
        if self._since is None:
            self._since = int(self.began)
        return None if self._since == NOT_YET else self._since

    def begin(self, step: int) -> None:
        """Begins after `step` steps."""
        self.began.fill_(step)
        self._since = step

    def note(self, ticket: Ticket) -> None:
        """Takes what would be drawn now in, and the oldest mask out."""
        for masks, kept in ((self.head_masks, ticket.heads), (self.neuron_masks, ticket.neurons)):
            masks[:-1] = masks[1:].clone()
            masks[-1] = _bits(kept, masks[-1])
        self.count += 1

    def distances(self, layers: Sequence[int]) -> tuple[float, float] | None:
        """How far the newest mask is from the farthest of the others, of heads and of neurons; waits for the device.

        It is the normalised Hamming distance: the share of heads, or of neurons, about which two masks disagree.

        Args:
            layers (`Sequence[int]`): those that run; the others count for nothing.

        Returns:
            The two distances, from 0 to 1, or `None` while there are fewer masks than are compared.
        """
        if int(self.count) < len(self.head_masks):
            return None
        farthest = [
            (masks[:-1, layers] != masks[-1, layers]).flatten(1).double().mean(dim=1).max()
            for masks in (self.head_masks, self.neuron_masks)
        ]
        heads, neurons = torch.stack(farthest).tolist()
        return heads, neurons

    def keep(self, ticket: Ticket) -> None:
        """Keeps the ticket that is drawn."""
        self.heads.copy_(_bits(ticket.heads, self.heads))
        self.neurons.copy_(_bits(ticket.neurons, self.neurons))

    def ticket(self, drawn_by: dict[str, Any]) -> Ticket:
        """The ticket that was drawn."""
        heads, neurons = (
            tuple(tuple(kept.nonzero()[:, 0].tolist()) for kept in bits) for bits in (self.heads, self.neurons)
        )
        shape = tuple((self.heads.shape[1], self.neurons.shape[1]) for _ in range(len(self.heads)))
        return Ticket(heads, neurons, shape, drawn_by)


def _bits(kept: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Which of each layer are kept, of the shape of `like`."""
    bits = torch.zeros(like.shape, dtype=torch.bool)
    for layer, indices in enumerate(kept):
        bits[layer, list(indices)] = True
    return bits.to(like.device)
