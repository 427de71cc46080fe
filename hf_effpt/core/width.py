"""Removal of heads and neurons from layers, and of their optimizer state.

Modules keep their names and get smaller parameters. Checkpoints are built from the configuration's `layer_widths`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from .anatomy import attention_of, feed_forward_of, layers_of, tell_heads
from .depth import order_of
from .errors import EffptError
from .ticket import Ticket

# Optimizers with state of the parameter's shape, which can be cut alike, that read their groups at every step; so has
# Muon, which is a kind of AdamW.
ELEMENTWISE = (optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.RMSprop, optim.SGD)


class Cut(NamedTuple):
    """A new parameter: the rows (`dim` 0) or columns (`dim` 1) `index` of the old one."""

    old: nn.Parameter
    new: nn.Parameter
    dim: int
    index: Tensor


def widths_of(backbone: Any) -> list[list[int]]:
    """Number of heads and of neurons of every allocated layer."""
    return [[attention_of(layer).heads, feed_forward_of(layer).neurons] for layer in layers_of(backbone).children()]


def running_widths(backbone: Any) -> list[list[int]]:
    """Number of heads and of neurons of every layer that runs, first to last."""
    widths = widths_of(backbone)
    return [widths[index] for index in order_of(backbone)]


def cut_width(backbone: Any, ticket: Ticket) -> list[Cut]:
    """Removes the heads and neurons that a ticket does not keep, in place; returns the cuts, for [`cut_state`].

    Outputs are those of the whole model with removed parts at zero. Layers that do not run stay whole. Raises an
    `EffptError` if the ticket was drawn from layers of another shape.
    """
    ticket.check(running_widths(backbone))
    return _cut(backbone, order_of(backbone), ticket.heads, ticket.neurons)


@torch.no_grad()
def _cut(
    backbone: Any, layers: Sequence[int], heads: Sequence[Sequence[int]], neurons: Sequence[Sequence[int]]
) -> list[Cut]:
    """Cuts the layers of these indices to the heads and neurons given for each."""
    cuts: list[Cut] = []
    for index, *wanted in zip(layers, heads, neurons, strict=True):
        layer = layers_of(backbone)[index]
        kept = (head_columns(wanted[0], attention_of(layer).head_size), torch.tensor(wanted[1], dtype=torch.long))
        for side in sides_of(layer):
            cuts += _keep(side, kept[side.kind])
        tell_heads(layer, len(wanted[0]))
    backbone.config.layer_widths = widths_of(backbone)
    return cuts


def head_columns(heads: Sequence[int], head_size: int) -> Tensor:
    """Indices of the columns of the output projection that belong to some heads."""
    return (torch.tensor(heads, dtype=torch.long)[:, None] * head_size + torch.arange(head_size)).flatten()


def cut_state(optimizer: optim.Optimizer, cuts: Iterable[Cut]) -> None:
    """Moves the optimizer state of each replaced parameter to the new one, cut alike; step counts are kept."""
    for old, new, dim, index in cuts:
        if old in optimizer.state:
            optimizer.state[new] = {
                name: value.index_select(dim, index.to(value.device))
                if isinstance(value, Tensor) and value.shape == old.shape
                else value
                for name, value in optimizer.state.pop(old).items()
            }


def resize(backbone: Any, widths: Sequence[Sequence[int]]) -> None:
    """Cuts the allocated layers of a new `backbone` to `widths`, the numbers of heads and neurons of each.

    Raises an `EffptError` if the number of layers differs, or a layer has fewer heads or neurons.
    """
    every = widths_of(backbone)
    possible = len(widths) == len(every) and all(
        0 <= heads <= most and 1 <= neurons <= wide
        for (heads, neurons), (most, wide) in zip(widths, every, strict=True)
    )
    if not possible:
        raise EffptError(
            f"`layer_widths` is {[list(layer) for layer in widths]}, but the model has layers of heads and neurons "
            f"{every}; give each layer as many as it has, or fewer, and at least one neuron."
        )
    heads, neurons = ([range(layer[kind]) for layer in widths] for kind in (0, 1))
    _cut(backbone, range(len(every)), heads, neurons)


@torch.no_grad()
def widen(backbone: Any) -> None:
    """Pads layers to their full width with zeros; the outputs stay the same."""
    config = backbone.config
    for layer in layers_of(backbone).children():
        whole = (config.num_attention_heads * attention_of(layer).head_size, config.intermediate_size)
        for side in sides_of(layer):
            _pad(side, whole[side.kind])
        tell_heads(layer, config.num_attention_heads)
    config.layer_widths = None


class Side(NamedTuple):
    """A module of a layer of which heads (`kind` 0) or neurons (1) own rows (`dim` 0) or columns (1).

    Rows are in `blocks` of equal size, one after the other, of which each part of the layer owns some in every one.
    """

    linear: nn.Linear
    dim: int
    kind: int
    blocks: int = 1


def sides_of(layer: nn.Module) -> list[Side]:
    """Matrices of a layer: those of its attention, the output last, then of its feed-forward block."""
    attention, block = attention_of(layer), feed_forward_of(layer)
    inner = [Side(projection, 0, 0, attention.blocks) for projection in attention.inner]
    return [*inner, Side(attention.output, 1, 0), Side(block.up, 0, 1, block.blocks), Side(block.down, 1, 1)]


def _keep(side: Side, index: Tensor) -> list[Cut]:
    """Keeps the rows or columns `index` of each block of a module, in place."""
    linear, dim = side.linear, side.dim
    size = linear.weight.shape[dim] // side.blocks
    index = torch.cat([index + block * size for block in range(side.blocks)])
    names = ["weight"] if dim or linear.bias is None else ["weight", "bias"]
    cuts = [_replace(linear, name, dim, index) for name in names]
    linear.out_features, linear.in_features = linear.weight.shape
    return cuts


def _replace(linear: nn.Linear, name: str, dim: int, index: Tensor) -> Cut:
    old: nn.Parameter = getattr(linear, name)
    index = index.to(old.device)
    new = nn.Parameter(old.index_select(dim, index), requires_grad=old.requires_grad)
    setattr(linear, name, new)
    return Cut(old, new, dim, index)


def _pad(side: Side, size: int) -> None:
    """Adds rows or columns of zeros to each block of a module, in place, up to `size`."""
    linear, dim = side.linear, side.dim
    for name in ["weight"] if dim or linear.bias is None else ["weight", "bias"]:
        parts = getattr(linear, name).chunk(side.blocks, dim) if side.blocks > 1 else [getattr(linear, name)]
        padded = [
            nn.functional.pad(part, (*[0, 0] * (part.ndim - 1 - dim), 0, size - part.shape[dim])) for part in parts
        ]
        setattr(linear, name, nn.Parameter(torch.cat(padded, dim)))
    linear.out_features, linear.in_features = linear.weight.shape
