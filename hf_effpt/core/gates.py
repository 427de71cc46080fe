"""Gates: factors on the outputs of attention heads and feed-forward neurons.

They multiply columns of the output projections W_o and W_2, which is equivalent and stores no further activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import attention_of, feed_forward_of, layers_of
from .context import RunContext
from .modes import aside, evaluating
from .precision import KeepsPrecision
from .width import widths_of

BATCHES = 8  # of training text, to measure importance
NAME = "width_gates"  # attribute of the backbone


class GatedLinear(nn.Linear):
    """A linear layer with gated groups of inputs; [`WidthGates`] sets it as the class of stock modules."""

    def forward(self, input: Tensor) -> Tensor:
        gates: WidthGates = self.__dict__["gates"]
        return nn.functional.linear(input, gates.gated(self) if gates.on else self.weight, self.bias)


class WidthGates(KeepsPrecision):
    """Gates of all layers of a backbone: one per head and one per neuron, initially 1.

    They stay in fp32, have no weight decay, and may have their own peak learning rate instead of the run's. [`attach`]
    adds them to the backbone. Unless `on`, they have no effect.
    """

    no_weight_decay = True

    def __init__(self, backbone: Any, learning_rate: float | None = None) -> None:
        super().__init__()
        self.learning_rate, self.on = learning_rate, False
        ones = partial(torch.ones, device=next(backbone.parameters()).device, dtype=torch.float32)
        widths = widths_of(backbone)  # the gates of a layer are a vector
        self.heads = nn.ParameterList(nn.Parameter(ones(heads)) for heads, _ in widths)
        self.neurons = nn.ParameterList(nn.Parameter(ones(neurons)) for _, neurons in widths)

    def reset_missing_parameters(self) -> None:
        """Sets gates that the loaded weights lack to 1."""
        for gate in self.parameters():
            if not getattr(gate, "_is_hf_initialized", False) and not gate.is_meta:
                nn.init.ones_(gate)

    def attach(self, backbone: Any) -> None:
        """Adds the gates to `backbone`."""
        setattr(backbone, NAME, self)
        if len(self.heads):
            for place, linear in _gateable(backbone):
                linear.__class__ = GatedLinear
                linear.__dict__.update(gates=self, gated=place)

    def detach(self, backbone: Any) -> None:
        """Removes the gates, as if all of them were 1."""
        delattr(backbone, NAME)
        for _, linear in _gateable(backbone):
            linear.__class__ = nn.Linear
            for name in ("gates", "gated"):
                linear.__dict__.pop(name, None)

    def gated(self, linear: nn.Linear) -> Tensor:
        """Weights of a gated module times its gates."""
        kind, index = linear.__dict__["gated"]
        gate, weight = getattr(self, kind)[index], linear.weight
        if not len(gate):
            return weight
        return (weight * gate.repeat_interleave(weight.shape[1] // len(gate))).to(weight.dtype)

    @torch.no_grad()
    def fold(self, backbone: Any) -> None:
        """Multiplies the gates into the weights and sets them to 1; the outputs stay the same."""
        for _, linear in _gateable(backbone):
            linear.weight.copy_(self.gated(linear))
        for gate in self.parameters():
            gate.fill_(1.0)

    def retire(self, backbone: Any) -> None:
        """Removes all gates, but keeps the module, which a parameter group of the optimizer belongs to."""
        if gates_of(backbone) is self:
            self.detach(backbone)
        self.heads, self.neurons, self.on = nn.ParameterList(), nn.ParameterList(), False
        self.attach(backbone)


def _gateable(backbone: Any) -> Iterator[tuple[tuple[str, int], nn.Linear]]:
    """Linear modules whose inputs have gates, each with the kind of gates and the index of its layer."""
    for index, layer in enumerate(layers_of(backbone).children()):
        yield ("heads", index), attention_of(layer).output
        yield ("neurons", index), feed_forward_of(layer).down


def gates_of(backbone: Any) -> WidthGates | None:
    """Gates of `backbone`, retired or not, or `None`."""
    return getattr(backbone, NAME, None)


Scores = tuple[list[Tensor], list[Tensor]]  # scores of the heads and of the neurons of every layer


def gate_scores(gates: WidthGates) -> Scores:
    """Absolute gates of every layer."""
    return [gate.detach().abs() for gate in gates.heads], [gate.detach().abs() for gate in gates.neurons]


def importance(
    backbone: Any,
    batches: Iterator[Mapping[str, Tensor]],
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    learning: Callable[[Mapping[str, Tensor]], AbstractContextManager],
) -> Scores:
    """Importance of each head and neuron: |dL/dgate|, averaged over batches (Michel et al., 2019).

    Scores of heads are divided by their L2 norm in each layer. Weights and their gradients do not change. `loss_of`
    computes the scalar loss of a batch, in the context that `learning` returns for it.
    """
    with opened(backbone) as gates:
        ours = list(gates.parameters())
        sums, number = [torch.zeros_like(gate) for gate in ours], 0
        for batch in batches:
            number += 1
            with learning(batch):
                found = torch.autograd.grad(loss_of(batch), ours, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total += gradient.abs()
        means, layers = [total / max(1, number) for total in sums], len(gates.heads)
        return [mean / mean.norm().clamp(min=1e-12) for mean in means[:layers]], means[layers:]


def loss_importance(backbone: Any, context: RunContext) -> Scores:
    """The [`importance`] of heads and neurons for the loss of a live run, over 8 batches that are charged to it."""
    assert context.draw_batches is not None
    assert context.charged is not None
    with aside(backbone), evaluating(context.model):
        batches = context.draw_batches(BATCHES)
        return importance(backbone, batches, lambda batch: context.model(**batch).loss, context.charged)


@contextmanager
def opened(backbone: Any) -> Iterator[WidthGates]:
    """Temporary gates that are on and all 1, in place of the gates of `backbone`."""
    own = gates_of(backbone)
    gates = WidthGates(backbone)
    gates.on = True
    gates.attach(backbone)
    try:
        yield gates
    finally:
        gates.detach(backbone)
        if own is not None:
            own.attach(backbone)


@torch.no_grad()
def magnitude(backbone: Any) -> Scores:
    """L2 norm of the weights of each head and neuron."""
    heads, neurons = [], []
    for layer in layers_of(backbone).children():
        attention, block = attention_of(layer), feed_forward_of(layer)
        rows = [projection.weight.float() for projection in (attention.query, attention.key, attention.value)]
        square = sum(row.square().sum(dim=1) for row in rows) + attention.output.weight.float().square().sum(dim=0)
        heads.append(square.unflatten(0, (-1, attention.head_size)).sum(dim=1).sqrt())
        square = block.up.weight.float().square().sum(dim=1) + block.down.weight.float().square().sum(dim=0)
        neurons.append(square.sqrt())
    return heads, neurons
