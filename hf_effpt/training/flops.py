"""FLOPs of the matrix products of a training step, counted by running a copy of the model without data or weights."""

import copy
from collections.abc import Callable, Hashable, Mapping
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_effpt.core.anatomy import embeddings_of, generator_of
from hf_effpt.core.depth import router_of, running


def ghost_of(model: PreTrainedModel) -> PreTrainedModel:
    """Copies `model` onto the meta device, with eager attention, all of whose products the counter sees."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    ghost = copy.deepcopy(model, memo)
    for module in ghost.modules():
        module.__dict__.pop("forward", None)  # the wrapper of mixed precision is bound to the original
        module._compiled_call_impl = None
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not _is_work(hook)]:
                del hooks[key]  # observers of the model must not see the copy run
    ghost.set_attn_implementation("eager")
    return ghost


def _is_work(hook: Any) -> bool:
    """`True` if a hook computes a part of the step: it is a method of an object with a true `is_work`."""
    return getattr(getattr(hook, "__self__", None), "is_work", False)


def loss_of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss that a training step differentiates: that of the model plus the penalties of its methods."""
    loss = model(**batch).loss
    for penalty in [method.penalty(model.backbone) for method in model.methods]:
        loss = loss if penalty is None else loss + penalty
    return loss


class FlopCounter:
    """Counter of the FLOPs of a micro-batch; a batch of known shapes on layers of known sizes is not counted again."""

    def __init__(self) -> None:
        self._counted: dict[tuple, list[int]] = {}
        # By module, the dictionaries that hold its parameters. Their contents are read each time, so that a parameter
        # that was cut or frozen is seen without notice.
        self._parameters: WeakKeyDictionary[nn.Module, list[dict[str, Any]]] = WeakKeyDictionary()

    def clear(self) -> None:
        """Searches modules for parameters anew; to be called after a submodule was added or replaced."""
        self._parameters.clear()

    def count(self, model: Any, batch: Mapping[str, Tensor]) -> float:
        """FLOPs of forward and backward of `model` on a batch of these shapes, with the layers that run now.

        Under a router, which has layers run on a share of the rows, that share is the one of the last step: between
        none and all of the rows the cost is linear in it.
        """
        batch = _positioned(batch)
        router = router_of(model.backbone)
        key = (_shapes(batch), model.training, router is not None, self._parts(model))
        if key not in self._counted:
            shares = [None] if router is None else [0.0, 1.0]
            self._counted[key] = [self._measure(model, batch, share) for share in shares]
        none, *every = self._counted[key]
        return none if router is None else none + router.share * (every[0] - none)

    def count_work(
        self, model: Any, batch: Mapping[str, Tensor], work: Callable[[Any, dict], Any], key: Hashable
    ) -> float:
        """FLOPs of `work(model, batch)` without gradients, in evaluation mode with all layers of the order.

        Args:
            model: the model; only a copy of it runs.
            batch (`Mapping[str, Tensor]`): a batch; only its shapes count.
            work (`Callable`): the work, called with a copy of `model` and a batch on the meta device.
            key (`Hashable`): name of the work; equal keys stand for equal work.
        """
        batch = _positioned(batch)
        known = ("work", key, _shapes(batch), self._parts(model, training=False))
        if known not in self._counted:
            self._counted[known] = [self._measure(model, batch, 1.0, work)]
        return self._counted[known][0]

    def _parts(self, model: Any, training: bool | None = None) -> tuple:
        """All that decides the cost besides the shapes of the batch: sizes of what runs, and signatures of methods."""
        backbone = model.backbone
        auxiliary = generator_of(backbone)
        encoders = [backbone] if auxiliary is None else [backbone, auxiliary]
        modules = [embeddings_of(backbone), *[running(encoder, training) for encoder in encoders]]
        # In the order they run: the last layer costs less than an equal one below it.
        sizes = tuple([tuple([self._sizes(module) for module in group]) for group in modules])
        return sizes, tuple([method.cost_signature(backbone) for method in model.methods])

    def _sizes(self, module: nn.Module) -> tuple[int, int]:
        """Number of values in the parameters of `module`, and in those of them that learn."""
        if (found := self._parameters.get(module)) is None:
            found = self._parameters[module] = [part._parameters for part in module.modules()]
        every = learning = 0
        for parameters in found:
            for parameter in parameters.values():
                if parameter is not None:
                    every += (size := parameter.numel())
                    learning += size if parameter.requires_grad else 0
        return every, learning

    @staticmethod
    def _measure(
        model: Any, batch: Mapping[str, Tensor], share: float | None, work: Callable[[Any, dict], Any] | None = None
    ) -> int:
        ghost: Any = ghost_of(model)
        if (router := router_of(ghost.backbone)) is not None:
            router.forced = share
        # Eager attention adds a mask; it multiplies nothing.
        batch = {name: tensor.to("meta") for name, tensor in batch.items() if name != "attention_mask"}
        apart = torch.random.fork_rng(devices=[])  # the copy must not draw from the run's generators
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(work is None), apart:
            if work is not None:
                work(ghost.eval(), batch)
            elif (loss := loss_of(ghost, batch)).requires_grad:
                loss.backward()
        return counter.get_total_flops()


def _positioned(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Adds `masked_positions` of the right shape to a batch whose collator gave only token labels.

    Their number is that of the labels, rounded up to the same number in each row, which keeps shapes static.
    """
    labels = batch.get("labels")
    if "masked_positions" in batch or labels is None or labels.ndim != 2:
        return batch
    each = -(-int((labels != -100).sum()) // len(labels))
    return {**batch, "masked_positions": torch.empty(len(labels), each, dtype=torch.long, device="meta")}


def _shapes(batch: Mapping[str, Tensor]) -> tuple:
    return tuple(sorted([(name, tensor.shape) for name, tensor in batch.items()]))
