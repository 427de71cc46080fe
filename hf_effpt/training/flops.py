"""FLOPs of a step's matrix products, counted by running a copy of the model on the meta device."""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hf_effpt.core.anatomy import embeddings_of, encoders_of
from hf_effpt.core.depth import router_of, running, stack_of
from hf_effpt.core.document_layout import DocumentLayout
from hf_effpt.models.document_blocks import LEAST
from hf_effpt.models.encoder_inputs import BLOCKS, MASK, way_apart
from hf_effpt.models.sparse_layer import SPARSE, most_labels

from .matrix_products import MatrixProducts


def ghost_of(model: PreTrainedModel) -> PreTrainedModel:
    """Copies `model` onto the meta device, with eager attention, whose products are all counted.

    Its last layers compute all positions if those of `model` do, whose attention may not take fewer.
    """
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    ghost = copy.deepcopy(model, memo)
    unwrap(ghost)
    # Hooks that make inputs require gradients decide what runs backward.
    kept = {handle.id for handle in getattr(model, "_require_grads_hooks", None) or ()}
    modules: Iterator[Any] = ghost.modules()
    for module in modules:
        module._compiled_call_impl = None
        saving = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(saving, partial):  # without the move of activations to the host, where these have no values
            module._gradient_checkpointing_func = partial(checkpoint, **saving.keywords)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                # Observers of the model must not see the copy run, unlike objects that compute a part of the step.
                if key not in kept and not getattr(getattr(hook, "__self__", None), "is_work", False):
                    del hooks[key]
    for encoder in encoders_of(getattr(ghost, "backbone", ghost.base_model)):
        stack_of(encoder).computes_whole |= encoder.config._attn_implementation not in SPARSE
    ghost.set_attn_implementation("eager")
    return ghost


def unwrap(model: nn.Module) -> None:
    """Removes the mixed-precision wrapper from the forward of a copied model, since it is bound to the original."""
    model.__dict__.pop("forward", None)


def loss_of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Loss that a training step differentiates: the model's plus the penalties of its methods.

    Without labels, the sum of the logits stands for a loss that the user computes from them.
    """
    output = model(**batch)
    loss = output.logits.sum() if output.loss is None else output.loss
    for penalty in [method.penalty(model.backbone) for method in model.methods]:
        loss = loss if penalty is None else loss + penalty
    return loss


class FlopCounter:
    """Counter of the FLOPs of a micro-batch; equal shapes on layers of equal sizes are counted once."""

    def __init__(self) -> None:
        self._counted: dict[tuple, list[int]] = {}
        # Parameter dictionaries by module, read at each count, so that cut or frozen parameters are noticed.
        self._parameters: WeakKeyDictionary[nn.Module, list[dict[str, Any]]] = WeakKeyDictionary()

    def clear(self) -> None:
        """Searches modules for parameters again; call it after a submodule was added or replaced."""
        self._parameters.clear()

    def count(self, model: Any, batch: Mapping[str, Tensor]) -> float:
        """FLOPs of forward and backward of `model` on `batch`, with the layers that run now.

        With a router, interpolates linearly between no rows and all rows at the share of the last step. With documents
        that are kept apart without a mask, linearly, too, by the pairs of tokens that attention compares.
        """
        batch = positioned(model, batch)
        documents = documents_apart(model, batch) if "document_ids" in batch else None
        router = router_of(model.backbone)
        key = (_shapes(batch), model.training, router is not None, documents is not None, self._parts(model))
        if key not in self._counted:
            shares = [None] if router is None else [0.0, 1.0]
            self._counted[key] = (
                [self._measure(model, batch, share) for share in shares]
                if documents is None
                else [self._measure(model, batch, documents=some) for some in documents.known]
            )
        none, *every = self._counted[key]
        if documents is not None:
            return documents.interpolated(none, *every)
        return none if router is None else none + router.share * (every[0] - none)

    def count_work(
        self, model: Any, batch: Mapping[str, Tensor], work: Callable[[Any, dict], Any], key: Hashable
    ) -> float:
        """FLOPs of `work(model, batch)` without gradients, in evaluation mode with all layers of the order.

        Runs a copy of `model` on the meta device; only the shapes of `batch` count. Equal `key`s stand for equal work.
        """
        batch = positioned(model, batch)
        documents = documents_apart(model, batch) if "document_ids" in batch else None
        known = ("work", key, _shapes(batch), documents is not None, self._parts(model, training=False))
        if known not in self._counted:
            some = [None] if documents is None else documents.known
            self._counted[known] = [self._measure(model, batch, 1.0, work, one) for one in some]
        counted = self._counted[known]
        return counted[0] if documents is None else documents.interpolated(*counted)

    def _parts(self, model: Any, training: bool | None = None) -> tuple:
        """All that decides the cost but the batch: sizes of what runs, and signatures of methods."""
        backbone = model.backbone
        encoders = encoders_of(backbone)
        kinds = encoders[0].config._attn_implementation, encoders[-1].config._attn_implementation
        sparse = kinds[0] in SPARSE, kinds[1] in SPARSE
        modules = [embeddings_of(backbone), *[running(encoder, training) for encoder in encoders]]
        # In running order: the last layer costs less than an equal one below it.
        sizes = tuple([tuple([self._sizes(module) for module in group]) for group in modules])
        return sizes, sparse, tuple([method.cost_signature(backbone) for method in model.methods])

    def _sizes(self, module: nn.Module) -> tuple[int, int, bool]:
        """Number of parameters of `module`, and of those that are trained; `True` if its forward runs twice."""
        if (found := self._parameters.get(module)) is None:
            found = self._parameters[module] = [part._parameters for part in module.modules()]
        every = learning = 0
        for parameters in found:
            for parameter in parameters.values():
                if parameter is not None:
                    every += (size := parameter.numel())
                    learning += size if parameter.requires_grad else 0
        return every, learning, module.__dict__.get("gradient_checkpointing", False)

    @staticmethod
    def count_gradients(model: Any, batch: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> int:
        """FLOPs of the loss of `model` on `batch` and of its gradients by some parameters, with all rows routed.

        Counted anew at each call, as the model is: in training or evaluation mode, with the gates that it has.
        """
        batch, wanted = positioned(model, batch), {id(parameter) for parameter in parameters}

        def measure(some: DocumentLayout | None) -> int:
            ghost, inputs = _ghost_with(model, some), _on_meta(batch, some)
            for own, copied in zip(model.parameters(), ghost.parameters(), strict=True):
                copied.requires_grad_(id(own) in wanted)
            return _products_of(ghost, 1.0, lambda: ghost(**inputs).loss.backward())

        documents = documents_apart(model, batch) if "document_ids" in batch else None
        return measure(None) if documents is None else documents.interpolated(*map(measure, documents.known))

    @staticmethod
    def _measure(
        model: Any, batch: Mapping[str, Any], share: float | None = None,
        work: Callable[[Any, dict], Any] | None = None, documents: DocumentLayout | None = None,
    ) -> int:  # fmt: skip
        ghost, inputs = _ghost_with(model, documents), _on_meta(batch, documents)
        if work is None:
            return _products_of(ghost, share, lambda: _backward(loss_of(ghost, inputs)))
        with torch.no_grad():
            return _products_of(ghost.eval(), share, lambda: work(ghost, inputs))


def _ghost_with(model: Any, documents: DocumentLayout | None) -> Any:
    """A copy of `model`; with `documents` it attends within blocks, which a meta device splits into products."""
    ghost: Any = ghost_of(model)
    if documents is not None:
        ghost.set_attn_implementation("sdpa")
    return ghost


def _products_of(ghost: Any, share: float | None, work: Callable[[], Any]) -> int:
    """FLOPs of work of a copied model; `share` of the rows is routed, if there is a router."""
    if (router := router_of(ghost.backbone)) is not None:
        router.forced = share
    # The copy must not draw from the run's generators.
    with MatrixProducts() as counter, torch.random.fork_rng(devices=[]):
        work()
    return counter.flops


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()


def _on_meta(batch: Mapping[str, Any], documents: DocumentLayout | None) -> dict[str, Any]:
    """Shapes of a batch, without the attention mask, which is only added, not multiplied, and with these documents."""
    shapes = {name: tensor.to("meta") for name, tensor in batch.items() if name not in ("attention_mask", "documents")}
    return shapes if documents is None else {**shapes, "documents": documents}


def positioned(model: Any, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Adds `masked_positions`, without values, to a batch for pre-training that has only labels, not at all tokens."""
    labels = batch.get("labels")
    if "masked_positions" in batch or "causal" in batch or labels is None or not model.pretrains:
        return batch
    places = torch.empty(len(labels), most_labels(labels), dtype=torch.long, device="meta")
    return {**batch, "masked_positions": places}


class DocumentsApart(NamedTuple):
    """Pairs of tokens that attention compares in a batch whose documents are kept apart without a mask.

    `known` are two layouts of the same shape, with other numbers of `products`, between which work is linear.
    """

    pairs: int
    known: tuple[DocumentLayout, DocumentLayout]

    @property
    def share(self) -> float:
        """`pairs` as a share of those that a mask would compare."""
        return self.pairs / self.known[0].products

    def interpolated(self, whole: int, halves: int) -> int:
        """Work with `pairs`, from that with each layout."""
        more, fewer = (layout.products for layout in self.known)
        return halves + (whole - halves) * (self.pairs - fewer) // (more - fewer)


def documents_apart(model: Any, batch: Mapping[str, Any]) -> DocumentsApart | None:
    """Pairs of tokens that tell the work of a batch with `document_ids`; `None` if it follows from the shapes.

    Waits for the device unless `documents` are given.
    """
    ids_BL = batch["document_ids"]
    if ids_BL.shape[1] < LEAST or (way := way_apart(model, ids_BL.shape[1])) == MASK:
        return None
    documents = batch.get("documents") or DocumentLayout.of(ids_BL)
    rows, length = ids_BL.shape
    known = DocumentLayout.pieces(rows, length, 1), DocumentLayout.pieces(rows, length, 2)
    return DocumentsApart(documents.products if way == BLOCKS else documents.pairs, known)


def _shapes(batch: Mapping[str, Any]) -> tuple:
    return tuple(sorted([(name, tensor.shape) for name, tensor in batch.items() if name != "documents"]))
