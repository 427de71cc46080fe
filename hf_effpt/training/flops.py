"""Matrix-multiplication FLOPs of a training step, counted by running the model once without data or weights."""

import copy
from collections.abc import Callable, Hashable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_effpt.core.anatomy import embeddings_of, generator_of
from hf_effpt.core.depth import router_of, running


def ghost_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` with shapes but no storage, and with eager attention, which the counter sees whole."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    ghost = copy.deepcopy(model, memo)
    for module in ghost.modules():
        module.__dict__.pop("forward", None)  # what mixed precision wraps around it has no meaning without data
        module._compiled_call_impl = None
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not _is_work(hook)]:
                del hooks[key]  # whoever watches the model shall not see the copy run
    ghost.set_attn_implementation("eager")
    return ghost


def _is_work(hook: Any) -> bool:
    """Whether a hook computes a part of the step: it is a method of an object that says so."""
    return getattr(getattr(hook, "__self__", None), "is_work", False)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """How many numbers a module holds as parameters, and how many of them learn."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def loss_of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss that a training step differentiates, with what its methods add."""
    loss = model(**batch).loss
    for penalty in [method.penalty(model.backbone) for method in model.methods]:
        loss = loss if penalty is None else loss + penalty
    return loss


class FlopCounter:
    """Counts the FLOPs of forward and backward for one micro-batch; equal shapes on equal layers are counted once."""

    def __init__(self) -> None:
        self._counted: dict[tuple, list[int]] = {}

    def count(self, model: Any, batch: Mapping[str, Tensor]) -> float:
        """FLOPs of a training step of `model` on a batch of the shapes of `batch`, for the layers that run now.

        Where a router has layers run on some rows only, those that ran in the last step are counted: between none and
        all of them the cost is linear in their number.
        """
        batch = _positioned(batch)
        router = router_of(model.backbone)
        key = (_shapes(batch), model.training, router is not None, self.parts(model))
        if key not in self._counted:
            shares = [None] if router is None else [0.0, 1.0]
            self._counted[key] = [self._measure(model, batch, share) for share in shares]
        none, *every = self._counted[key]
        return none if router is None else none + router.share * (every[0] - none)

    def count_work(
        self, model: Any, batch: Mapping[str, Tensor], work: Callable[[Any, dict], Any], key: Hashable
    ) -> float:
        """FLOPs of `work(model, batch)` without a gradient in evaluation mode, in which all layers run.

        Args:
            model: only copied.
            batch (`Mapping[str, Tensor]`): of which only shapes count.
            work (`Callable`): called with a copy of `model` and a batch, neither of which has values.
            key (`Hashable`): of equal keys, the work is equal.
        """
        batch = _positioned(batch)
        known = ("work", key, _shapes(batch), self.parts(model, training=False))
        if known not in self._counted:
            self._counted[known] = [self._measure(model, batch, 1.0, work)]
        return self._counted[known][0]

    @staticmethod
    def parts(model: Any, training: bool | None = None) -> tuple:
        """What decides the cost besides the shapes of the batch: what of the layers that run is there, and learns."""
        auxiliary = generator_of(model.backbone)
        encoders = [model.backbone, *([] if auxiliary is None else [auxiliary])]
        sizes = (tuple(sorted(map(_sizes, running(encoder, training)))) for encoder in encoders)
        also = (method.cost_signature(model.backbone) for method in model.methods)
        return (*sizes, *(_sizes(module) for module in embeddings_of(model.backbone)), *also)

    @staticmethod
    def _measure(
        model: Any, batch: Mapping[str, Tensor], share: float | None, work: Callable[[Any, dict], Any] | None = None
    ) -> int:
        ghost: Any = ghost_of(model)
        if (router := router_of(ghost.backbone)) is not None:
            router.forced = share
        # The values of a mask cost nothing.
        batch = {name: tensor.to("meta") for name, tensor in batch.items() if name != "attention_mask"}
        # The run's random numbers are not those of a copy without data.
        apart = torch.random.fork_rng(devices=[])
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(work is None), apart:
            if work is not None:
                work(ghost.eval(), batch)
            elif (loss := loss_of(ghost, batch)).requires_grad:
                loss.backward()
        return counter.get_total_flops()


def _positioned(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The batch, with as many positions as there are labels if its collator has not told where they are.

    Their number is rounded up to whole rows, which keeps shapes static.
    """
    labels = batch.get("labels")
    if "masked_positions" in batch or labels is None or labels.ndim != 2:
        return batch
    each = -(-int((labels != -100).sum()) // len(labels))
    return {**batch, "masked_positions": torch.empty(len(labels), each, dtype=torch.long, device="meta")}


def _shapes(batch: Mapping[str, Tensor]) -> tuple:
    return tuple(sorted((name, tuple(tensor.shape)) for name, tensor in batch.items()))
