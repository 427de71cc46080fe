"""Depth of an encoder: all layers are allocated at the start, and an order says which of them run.

No parameter appears or disappears after the optimizer exists: growth copies in place and lengthens the order. A layer
that does not run has no gradient, costs nothing and keeps its optimizer state. After a growth the order may be any
permutation: a layer's index, where it is stored, says nothing of its position, where it runs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from .anatomy import check_first, layer_types_of, layers_of, replace_layers
from .errors import EffptError

PRUNING = "pruning"  # attribute of a backbone: facts about layers that a method left out of an export


class Router(Protocol):
    """Runs each layer on some rows of a batch only."""

    share: float  # of the skippable rows that ran in the last forward pass
    forced: float | None  # fixed share of rows to run, so that shapes do not depend on computed values

    def __call__(self, layers: list[Any]) -> list[Any]:
        """Returns callables to use, with the same arguments, in place of `layers`, first to last."""
        ...


class LayerStack(nn.ModuleList):
    """Replacement for an encoder's layer list, with the same parameter names.

    Iterating it, as the stock encoder does, yields the layers of `order` that are not in `dropped`. Layers are dropped
    in training mode only. An empty order runs no layer; it never means "all".
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)
        self._order = tuple(range(len(self)))
        self.dropped: frozenset[int] = frozenset()
        # Number of layers that run, from the first of the order on; by default all.
        self.first: int | None = None
        # Replaces the last layer that runs, its first argument, so that a head may compute only outputs it needs.
        self.last: Callable[..., torch.Tensor] | None = None
        # `True` if something besides the head reads the outputs of every position in training.
        self.read_whole = False
        self.computes_whole = False  # `True` if the last layer never computes fewer positions than the others
        # By index of a layer, the factor of its change of the hidden states; 1 for all others.
        self.scales: Mapping[int, float] = {}
        self.router: Router | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "router":  # not a submodule here: its parameters are named by its place in the backbone
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def order(self) -> tuple[int, ...]:
        """Indices of the layers that run, first to last."""
        return self._order

    @order.setter
    def order(self, order: Iterable[int]) -> None:
        order = tuple(order)
        if not all(0 <= index < len(self) for index in order):
            raise EffptError(
                f"The layer order {list(order)} names layers outside 0..{len(self) - 1}; use allocated layers."
            )
        self._order = order

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the layers that the next forward pass runs."""
        order = self._order
        if self.training and self.dropped:
            order = tuple([index for index in order if index not in self.dropped])
        return order[: self.first]

    def __iter__(self) -> Iterator[Any]:
        layers: list[Any] = [
            in_place_of(self[index], _scaled, self.scales[index]) if index in self.scales else self[index]
            for index in self.active
        ]
        if self.last is not None and layers:
            layers[-1] = in_place_of(layers[-1], self.last)
        return iter(layers if self.router is None else self.router(layers))

    def copy_layer(self, source: int, target: int) -> None:
        """Copies the weights and buffers of layer `source` into layer `target`, without sharing storage.

        What `source` lacks, as the first layer of a ModernBERT does a norm, `target` keeps as it was initialized.
        """
        self[target].load_state_dict({**self[target].state_dict(), **self[source].state_dict()})


def in_place_of(layer: Any, function: Callable[..., torch.Tensor], *args: Any) -> Any:
    """A callable in place of `layer` in a forward pass: `function` of the layer, `args` and the layer's inputs."""
    substitute: Any = partial(function, layer, *args)
    if (kind := vars(layer).get("attention_type")) is not None:
        substitute.attention_type = kind  # by which the encoder chooses the inputs
    return substitute


def _scaled(layer: nn.Module, scale: float, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden + scale * (layer(hidden, *args, **kwargs) - hidden)


# A backbone is a module with a `config`. Below it is `Any`: torch types every attribute of a module as a tensor or a
# module, and core does without the `PreTrainedModel` of transformers.


def stack_of(backbone: Any) -> LayerStack:
    """The `LayerStack` of `backbone`, which replaces its layer list at the first call."""
    layers = layers_of(backbone)
    if not isinstance(layers, LayerStack):
        layers = LayerStack(layers._modules[str(index)] for index in range(len(layers)))
        saved = getattr(backbone.config, "layer_order", None)
        if saved is not None:
            layers.order = saved
        replace_layers(backbone, layers)
    return layers


def order_of(backbone: Any) -> tuple[int, ...]:
    """Indices of the layers of `backbone` that run, first to last; a layer's position is its place in them."""
    layers = layers_of(backbone)
    return layers.order if isinstance(layers, LayerStack) else tuple(range(len(layers)))


def depth_of(config: Any) -> int:
    """Number of layers that run in a model of this configuration."""
    order = getattr(config, "layer_order", None)
    return config.num_hidden_layers if order is None else len(order)


def running(backbone: Any, training: bool | None = None) -> list[Any]:
    """Layers of the next forward pass, first to last; `training` is by default the mode of `backbone`."""
    layers = layers_of(backbone)
    if not isinstance(layers, LayerStack):
        return list(layers)
    return [layers[index] for index in (layers.order if training is False else layers.active)]


@contextmanager
def first_layers(backbone: Any, number: int | None) -> Iterator[None]:
    """Limits `backbone` to its first `number` layers within the block (`None`: all); an `EffptError` below 1."""
    if number is not None and number < 1:
        raise EffptError(f"The first {number} layers cannot run; at least 1 does, or `None` for all.")
    stack = stack_of(backbone)
    before, stack.first = stack.first, number
    try:
        yield
    finally:
        stack.first = before


def router_of(backbone: Any) -> Router | None:
    """The router of `backbone`, or `None` if all rows go through all layers."""
    return getattr(layers_of(backbone), "router", None)


def set_order(backbone: Any, order: Iterable[int]) -> None:
    """Sets the order of layers, also in the configuration, so that a checkpoint keeps it."""
    stack = stack_of(backbone)
    stack.order = order
    backbone.config.layer_order = list(stack.order)


def every_other(layers: int, depth: int) -> list[int]:
    """Positions of `depth` of `layers` layers, evenly spaced from 0: 0, 2, 4, … for half of them."""
    return [index * layers // depth for index in range(depth)]


def flatten(backbone: Any) -> None:
    """Reduces the layers to those of the order, as a plain `nn.ModuleList` in that order."""
    layers = layers_of(backbone)
    if isinstance(layers, LayerStack):
        check_first(layers, layers.order)
        replace_layers(backbone, nn.ModuleList(layers[index] for index in layers.order))
        if types := layer_types_of(backbone.config):
            backbone.config.layer_types = [types[index] for index in layers.order]
        if widths := getattr(backbone.config, "layer_widths", None):
            backbone.config.layer_widths = [widths[index] for index in layers.order]
        backbone.config.num_hidden_layers = len(layers.order)
        backbone.config.layer_order = None
