"""Removal of heads and neurons from layers, and of their optimizer state.

Modules keep their names and get smaller parameters. Checkpoints are built from the configuration's `layer_widths`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .anatomy import attention_of, feed_forward_of, layers_of, tell_heads
from .depth import stack_of
from .errors import EffptError
from .ticket import Ticket, draw

# Optimizers with state of the parameter's shape, which can be cut alike, that read their groups at every step.
ELEMENTWISE = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.SGD,
)


class Cut(NamedTuple):
    """A new parameter: the rows (`dim` 0) or columns (`dim` 1) `index` of the old one."""

    old: nn.Parameter
    new: nn.Parameter
    dim: int
    index: Tensor


def widths_of(backbone: Any) -> list[list[int]]:
    """Number of heads and of neurons of every allocated layer."""
    widths = []
    for layer in layers_of(backbone).children():
        attention = attention_of(layer)
        heads = attention.query.out_features // attention.head_size
        widths.append([heads, feed_forward_of(layer).up.out_features])
    return widths


def layers_that_run(backbone: Any) -> list[int]:
    """Sorted indices of the layers that run; a ticket keeps the others whole."""
    return sorted(set(stack_of(backbone).order))


def draw_running(backbone: Any, scores: tuple[list[Tensor], list[Tensor]], heads: int, neurons: int) -> Ticket:
    """Ticket of the highest scores in the layers that run; it keeps other layers whole.

    Args:
        scores (`tuple[list[Tensor], list[Tensor]]`): scores of the heads and of the neurons of all allocated layers.
        heads (`int`): heads to keep in each layer that runs.
        neurons (`int`): neurons to keep in all layers that run together.
    """
    layers, widths = layers_that_run(backbone), widths_of(backbone)
    of_heads, of_neurons = scores
    drawn = draw([of_heads[layer] for layer in layers], [of_neurons[layer] for layer in layers], heads, neurons)
    kept_heads, kept_neurons = ([tuple(range(layer[kind])) for layer in widths] for kind in (0, 1))
    for place, layer in enumerate(layers):
        kept_heads[layer], kept_neurons[layer] = drawn.heads[place], drawn.neurons[place]
    return Ticket(tuple(kept_heads), tuple(kept_neurons), tuple((number, of) for number, of in widths))


@torch.no_grad()
def cut_width(backbone: Any, ticket: Ticket) -> list[Cut]:
    """Removes the heads and neurons that a ticket does not keep, in place.

    Outputs are those of the whole model with removed parts at zero. Returns the cuts, for [`cut_state`].

    Raises:
        EffptError: if the ticket was drawn from layers of another shape.
    """
    ticket.check(widths_of(backbone))
    cuts: list[Cut] = []
    for layer, heads, neurons in zip(layers_of(backbone).children(), ticket.heads, ticket.neurons, strict=True):
        attention, feed_forward = attention_of(layer), feed_forward_of(layer)
        columns = head_columns(heads, attention.head_size)
        for projection in (attention.query, attention.key, attention.value):
            cuts += _keep_outputs(projection, columns)
        cuts += _keep_inputs(attention.output, columns)
        tell_heads(layer, len(heads))
        cuts += _keep_outputs(feed_forward.up, torch.tensor(neurons, dtype=torch.long))
        cuts += _keep_inputs(feed_forward.down, torch.tensor(neurons, dtype=torch.long))
    backbone.config.layer_widths = widths_of(backbone)
    return cuts


def head_columns(heads: Sequence[int], head_size: int) -> Tensor:
    """Indices of the columns of the output projection that belong to some heads."""
    return (torch.tensor(heads, dtype=torch.long)[:, None] * head_size + torch.arange(head_size)).flatten()


def cut_state(optimizer: torch.optim.Optimizer, cuts: Iterable[Cut]) -> None:
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
    """Cuts the layers of a new `backbone` to `widths`, the numbers of heads and neurons of each.

    Raises:
        EffptError: if the number of layers differs, or a layer has fewer heads or neurons.
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
    kept = Ticket(
        heads=tuple(tuple(range(heads)) for heads, _ in widths),
        neurons=tuple(tuple(range(neurons)) for _, neurons in widths),
        shape=tuple((heads, neurons) for heads, neurons in every),
    )
    cut_width(backbone, kept)


@torch.no_grad()
def widen(backbone: Any) -> None:
    """Pads layers to their full width with zeros; the outputs stay the same."""
    config = backbone.config
    for layer in layers_of(backbone).children():
        attention, feed_forward = attention_of(layer), feed_forward_of(layer)
        whole = config.num_attention_heads * attention.head_size
        for projection in (attention.query, attention.key, attention.value):
            _pad(projection, whole, projection.in_features)
        _pad(attention.output, attention.output.out_features, whole)
        tell_heads(layer, config.num_attention_heads)
        _pad(feed_forward.up, config.intermediate_size, feed_forward.up.in_features)
        _pad(feed_forward.down, feed_forward.down.out_features, config.intermediate_size)
    config.layer_widths = None


def _keep_outputs(linear: nn.Linear, index: Tensor) -> list[Cut]:
    linear.out_features = len(index)
    return [_replace(linear, "weight", 0, index), *([_replace(linear, "bias", 0, index)] if _has_bias(linear) else [])]


def _keep_inputs(linear: nn.Linear, index: Tensor) -> list[Cut]:
    linear.in_features = len(index)
    return [_replace(linear, "weight", 1, index)]


def _has_bias(linear: nn.Linear) -> bool:
    return linear.bias is not None


def _replace(linear: nn.Linear, name: str, dim: int, index: Tensor) -> Cut:
    old: nn.Parameter = getattr(linear, name)
    index = index.to(old.device)
    new = nn.Parameter(old.index_select(dim, index), requires_grad=old.requires_grad)
    setattr(linear, name, new)
    return Cut(old, new, dim, index)


def _pad(linear: nn.Linear, outputs: int, inputs: int) -> None:
    rows, columns = outputs - linear.out_features, inputs - linear.in_features
    linear.weight = nn.Parameter(nn.functional.pad(linear.weight, (0, columns, 0, rows)))
    if linear.bias is not None:
        linear.bias = nn.Parameter(nn.functional.pad(linear.bias, (0, rows)))
    linear.out_features, linear.in_features = outputs, inputs
