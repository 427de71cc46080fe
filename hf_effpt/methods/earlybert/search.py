"""State of a search for a ticket, and the ticket found; all of it is in checkpoints."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_effpt.core.ticket import Ticket

NAME = "ticket_search"  # attribute of the backbone
NOT_YET = -1


class Search(nn.Module):
    """Last masks of heads and neurons, oldest first, and the bits of the ticket once it is drawn.

    Shapes are those of the whole layers, before and after the cut: `head_masks` `(window, layers, heads)`,
    `neuron_masks` `(window, layers, neurons)`, and the ticket's `heads` and `neurons` without the first dimension.
    Layers are those allocated, by index, as all tensors of a checkpoint are; tickets are in running order, and methods
    translate by the `order` of the layers that run.
    `count` is the number of masks so far, `began` the number of optimizer steps before the search. If `begun`, the
    search begins with the run.
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
        self._since: int | None = None  # value of `began`, so that no step has to wait for the device
        self.register_buffer("head_masks", torch.zeros(window, layers, heads, dtype=torch.bool))
        self.register_buffer("neuron_masks", torch.zeros(window, layers, neurons, dtype=torch.bool))
        self.register_buffer("heads", torch.ones(layers, heads, dtype=torch.bool))
        self.register_buffer("neurons", torch.ones(layers, neurons, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("began", torch.full((), self._first, dtype=torch.long))

    def reset_missing_parameters(self) -> None:
        """Resets the state if the loaded weights have none."""
        if not getattr(self.count, "_is_hf_initialized", False) and not self.count.is_meta:
            for kept in (self.heads, self.neurons):
                kept.fill_(True)
            self.forget()

    def forget(self) -> None:
        """Forgets all masks; the search has begun only if it begins with the run."""
        for seen in (self.head_masks, self.neuron_masks, self.count):
            seen.zero_()
        self.began.fill_(self._first)
        self._since = None

    @property
    def since(self) -> int | None:
        """Number of optimizer steps before the search; `None` if it has not begun."""
        if self._since is None:
            self._since = int(self.began)
        return None if self._since == NOT_YET else self._since

    def begin(self, step: int) -> None:
        """Begins the search after `step` optimizer steps."""
        self.began.fill_(step)
        self._since = step

    def note(self, ticket: Ticket, order: Sequence[int]) -> None:
        """Appends the ticket that would be drawn now and drops the oldest mask."""
        for masks, kept in ((self.head_masks, ticket.heads), (self.neuron_masks, ticket.neurons)):
            masks[:-1] = masks[1:].clone()
            masks[-1] = _bits(kept, order, masks[-1])
        self.count += 1

    def distances(self, order: Sequence[int]) -> tuple[float, float] | None:
        """Largest distance of the newest mask from the others, for heads and for neurons; waits for the device.

        The normalised Hamming distance is the share of heads, or neurons, of the layers that run in which two masks
        differ. It is `None` while there are fewer masks than `window`.
        """
        if int(self.count) < len(self.head_masks):
            return None
        layers = list(order)
        differ = [masks[:-1, layers] != masks[-1, layers] for masks in (self.head_masks, self.neuron_masks)]
        heads, neurons = torch.stack([of.flatten(1).double().mean(dim=1).max() for of in differ]).tolist()
        return heads, neurons

    def keep(self, ticket: Ticket, order: Sequence[int]) -> None:
        """Stores the ticket that was drawn."""
        self.heads.copy_(_bits(ticket.heads, order, self.heads))
        self.neurons.copy_(_bits(ticket.neurons, order, self.neurons))

    def ticket(self, order: Sequence[int], drawn_by: dict[str, Any]) -> Ticket:
        """Returns the ticket that was drawn."""
        both = (self.heads[list(order)], self.neurons[list(order)])
        heads, neurons = (tuple(tuple(kept.nonzero()[:, 0].tolist()) for kept in bits) for bits in both)
        return Ticket(heads, neurons, ((self.heads.shape[1], self.neurons.shape[1]),) * len(order), drawn_by)


def _bits(kept: Sequence[Sequence[int]], order: Sequence[int], like: Tensor) -> Tensor:
    """Indices kept in each layer of `order` as a mask of the shape of `like`; other layers stay whole."""
    bits = torch.ones(like.shape, dtype=torch.bool)
    for layer, indices in zip(order, kept, strict=True):
        bits[layer] = False
        bits[layer, list(indices)] = True
    return bits.to(like.device)
