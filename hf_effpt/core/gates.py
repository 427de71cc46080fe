"""Gates: factors on the outputs of attention heads and feed-forward neurons, and the importance of these parts.

Gates multiply columns of the output projections W_o and W_2, which is equivalent and stores no further activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import attention_of, feed_forward_of, layers_of
from .context import RunContext
from .depth import order_of, running
from .modes import aside, evaluating, uncompiled
from .precision import KeepsPrecision
from .processes import add_up
from .token_losses import TokenLosses, observing_losses
from .width import widths_of

BATCHES = 8  # of training text, to measure importance
NAME = "width_gates"  # attribute of the backbone


class GatedLinear(nn.Linear):
    """A linear layer with gated groups of inputs; [`WidthGates`] sets it as the class of stock modules."""

    def forward(self, input: Tensor) -> Tensor:
        gates: WidthGates = self.__dict__["gates"]
        if gates.rows is not None:
            return nn.functional.linear(gates.gated_rows(self, input), self.weight, self.bias)
        return nn.functional.linear(input, gates.gated(self) if gates.on else self.weight, self.bias)


class WidthGates(KeepsPrecision):
    """Gates of all layers of a backbone: one per head and one per neuron, initially 1.

    They stay in fp32, have no weight decay, and may have their own peak learning rate instead of the run's. [`attach`]
    adds them to the backbone. Unless `on`, they have no effect. With `rows` each row of a batch of that size has gates
    of its own, which multiply the inputs of W_o and W_2: the gradient then tells the rows apart.
    """

    no_weight_decay = True

    def __init__(self, backbone: Any, learning_rate: float | None = None, rows: int | None = None) -> None:
        super().__init__()
        self.learning_rate, self.on, self.rows = learning_rate, rows is not None, rows
        each = () if rows is None else (rows,)
        ones = partial(torch.ones, *each, device=next(backbone.parameters()).device, dtype=torch.float32)
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

    def gated_rows(self, linear: nn.Linear, input: Tensor) -> Tensor:
        """Inputs of a gated module, of shape `(rows, ..., inputs)`, times the gates of each row."""
        kind, index = linear.__dict__["gated"]
        gate = getattr(self, kind)[index]
        if not gate.shape[1]:
            return input
        every = gate.repeat_interleave(input.shape[-1] // gate.shape[1], dim=1)
        return (input * every.view(len(gate), *[1] * (input.ndim - 2), -1)).to(input.dtype)

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


Scores = tuple[list[Tensor], list[Tensor]]  # of the heads and of the neurons of every layer that runs, first to last


def running_gates(backbone: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Gates of heads and of neurons of the layers that run, first to last."""
    gates, order = gates_of(backbone), order_of(backbone)
    assert gates is not None
    heads, neurons = ([of[index] for index in order] for of in (gates.heads, gates.neurons))
    return heads, neurons


def gate_scores(backbone: Any) -> Scores:
    """Absolute gates of the layers that run."""
    heads, neurons = ([gate.detach().abs() for gate in of] for of in running_gates(backbone))
    return heads, neurons


def gate_sum(backbone: Any) -> Tensor:
    """L1 norm of the gates of the layers that run, a scalar."""
    heads, neurons = running_gates(backbone)
    return torch.cat([*heads, *neurons]).abs().sum()


def importance(
    backbone: Any,
    batches: Iterator[Mapping[str, Tensor]],
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    learning: Callable[[Mapping[str, Tensor], Sequence[nn.Parameter]], AbstractContextManager],
) -> Scores:
    """Importance of each head and neuron: |dL/dgate| of each row's loss, averaged over rows (Michel et al., 2019).

    Scores of heads are divided by their L2 norm in each layer. One backward pass gives the gradients of all rows of a
    batch, and of nothing else. `loss_of` computes the mean loss of a batch, in the context that `learning` returns for
    it and the gates; each row of it counts alike, and those of all processes together.
    """
    sums, number = [], 0
    for batch in batches:
        rows = len(batch["input_ids"])
        number += rows
        with opened(backbone, rows), uncompiled(backbone), observing_losses(backbone, _mean_of_rows):
            heads, neurons = running_gates(backbone)
            with learning(batch, [*heads, *neurons]):
                found = torch.autograd.grad(loss_of(batch), [*heads, *neurons], materialize_grads=True)
        ours = [rows * gradient.abs().sum(dim=0) for gradient in found]  # the loss is the mean over rows
        sums = [total + own for total, own in zip(sums, ours, strict=True)] if sums else ours
    rows_of_all = add_up(torch.tensor(float(number), device=sums[0].device))
    means, layers = [add_up(total) / rows_of_all for total in sums], len(order_of(backbone))
    return [mean / mean.norm().clamp(min=1e-12) for mean in means[:layers]], means[layers:]


def _mean_of_rows(losses: TokenLosses) -> Tensor:
    """Factors that make the mean loss over labels the mean over rows of the mean of each."""
    _, labels_B = losses.by_row()
    weights_B = labels_B.sum() / (losses.rows * labels_B.clamp(min=1))
    return weights_B[losses.row_N]


def loss_importance(backbone: Any, context: RunContext) -> Scores:
    """The [`importance`] of heads and neurons for the loss of a live run, over 8 batches that are charged to it."""
    assert context.draw_batches is not None
    assert context.charged is not None
    with aside(backbone), evaluating(context.model):
        batches = context.draw_batches(BATCHES)
        return importance(backbone, batches, lambda batch: context.model(**batch).loss, context.charged)


@contextmanager
def opened(backbone: Any, rows: int | None = None) -> Iterator[WidthGates]:
    """Temporary gates that are on and all 1, in place of the gates of `backbone`; `rows` as in [`WidthGates`]."""
    own = gates_of(backbone)
    gates = WidthGates(backbone, rows=rows)
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
    for layer in running(backbone, training=False):
        attention, block = attention_of(layer), feed_forward_of(layer)
        rows = [_row_squares(projection, attention.blocks) for projection in attention.inner]
        square = sum(rows) + attention.output.weight.float().square().sum(dim=0)
        heads.append(square.unflatten(0, (-1, attention.head_size)).sum(dim=1).sqrt())
        square = _row_squares(block.up, block.blocks) + block.down.weight.float().square().sum(dim=0)
        neurons.append(square.sqrt())
    return heads, neurons


def _row_squares(linear: nn.Linear, blocks: int) -> Tensor:
    """Sums of the squares of the rows of a matrix, added over its blocks of equal size."""
    squares = linear.weight.float().square().sum(dim=1)
    return squares.reshape(blocks, len(squares) // blocks).sum(dim=0)
