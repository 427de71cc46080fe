"""Attention within the documents of packed rows, block by block: neither memory nor products grow with the whole row.

B batch, L row length, T tokens of the batch, H heads, K head size, M positions per row, N blocks, Q queries of a
block, R keys of a block.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from hf_effpt.core.document_layout import BLOCK, DocumentLayout

LEAST = 8 * BLOCK  # row length from which fewer products outweigh the copies that blocks take
BAND = 64  # queries of a block in a layer with a window, besides which its keys are those within the window


class Group(NamedTuple):
    """Blocks of one shape: places of their queries and keys in the flattened batch."""

    queries_NQ: Tensor
    keys_NR: Tensor


class Plan(NamedTuple):
    """Blocks in which attention is computed, in groups, and the place of each token in their outputs."""

    groups: list[Group]
    place_T: Tensor


def plan_of(layout: DocumentLayout, window: int | None, device: torch.device) -> Plan:
    """The plan of layers that attend to whole documents, or to tokens of them at most `window` apart.

    With a window, blocks of `BAND` tokens meet their neighbours within it, whatever the documents, unless these are
    as many as a row.
    """
    tokens = layout.rows * layout.length
    if window is not None and BAND + 2 * window < layout.length:
        size = BAND + 2 * window
        firsts = np.minimum(np.arange(0, tokens, BAND), tokens - BAND)
        queries_NQ = firsts[:, None] + np.arange(BAND)
        keys_NR = np.clip(firsts - window, 0, tokens - size)[:, None] + np.arange(size)
        place_T = np.empty(tokens, np.int64)
        place_T[queries_NQ.ravel()] = np.arange(queries_NQ.size)
        return Plan([Group(_on(queries_NQ, device), _on(keys_NR, device))], _on(place_T, device))
    groups, place_T, done = [], np.empty(tokens, np.int64), 0
    for size in np.unique(layout.segments[:, 2]):
        begins, ends, _ = layout.segments[layout.segments[:, 2] == size].T
        firsts = np.minimum(begins, tokens - size)  # a block reads on into others, which it does not see
        index_NQ = firsts[:, None] + np.arange(size)
        own_NQ = (index_NQ >= begins[:, None]) & (index_NQ < ends[:, None])
        place_T[index_NQ[own_NQ]] = done + np.flatnonzero(own_NQ)
        groups.append(Group(*[_on(index_NQ, device)] * 2))
        done += index_NQ.size
    return Plan(groups, _on(place_T, device))


def _on(values: np.ndarray, device: torch.device) -> Tensor:
    """`values` on the device; nothing waits for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


class DocumentMask(Tensor):
    """Attention mask that keeps documents apart without being written out, in place of a boolean one in SDPA.

    It holds the numbers of the documents, of shape `(batch_size, 1, 1, sequence_length)`. Given to
    `scaled_dot_product_attention`, like the biases of `torch.nn.attention.bias`, it has that computed by a [`Plan`].
    """

    documents: DocumentLayout
    window: int | None
    has_kernel: bool
    causal: bool
    positions_BM: Tensor | None
    _plan: Plan | None

    @classmethod
    def make(
        cls,
        document_ids_BL: Tensor,
        documents: DocumentLayout,
        window: int | None = None,
        has_kernel: bool = False,
        causal: bool = False,
    ) -> "DocumentMask":
        """A mask of documents, within which tokens attend to those at most `window` apart, or to all.

        If `has_kernel`, torch's kernel for documents of varying length computes it, and no plan. If `causal`, tokens
        attend to no later one.
        """
        mask = document_ids_BL[:, None, None].as_subclass(cls)
        mask.documents, mask.window, mask.has_kernel, mask.causal = documents, window, has_kernel, causal
        mask.positions_BM = mask._plan = None
        return mask

    def at(self, positions_BM: Tensor) -> "DocumentMask":
        """The mask for queries at some positions of each row."""
        made = type(self).make(self.numbers_BL, self.documents, self.window, self.has_kernel, self.causal)
        made.positions_BM, made._plan = positions_BM, self._plan
        return made

    @property
    def numbers_BL(self) -> Tensor:
        """Numbers of the documents, a plain tensor."""
        return self.as_subclass(Tensor)[:, 0, 0]

    @property
    def plan(self) -> Plan:
        """Blocks in which it is computed; made once."""
        if self._plan is None:
            self._plan = plan_of(self.documents, self.window, self.device)
        return self._plan

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        if func is Tensor.detach:  # as reentrant checkpointing does to the inputs of a layer
            return args[0].at(args[0].positions_BM)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@torch.compiler.disable  # shapes follow the documents; the rest of a layer is compiled
def _attend(
    query: Tensor,
    key_BHLK: Tensor,
    value_BHLK: Tensor,
    attn_mask: DocumentMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention of every token, or of those at the mask's positions, within documents; the shape is the query's."""
    at = None
    if attn_mask.positions_BM is not None:
        at = attn_mask.positions_BM[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
        query = torch.zeros_like(key_BHLK, dtype=query.dtype).scatter(2, at, query)
    rows, heads, length, size = query.shape
    tokens_THK = [states.transpose(1, 2).reshape(-1, heads, size) for states in (query, key_BHLK, value_BHLK)]
    attend = _by_kernel if attn_mask.has_kernel else _by_blocks
    mixed_THK = attend(tokens_THK, attn_mask, dropout_p, scale)
    mixed_BHLK = mixed_THK.view(rows, length, heads, size).transpose(1, 2)
    return mixed_BHLK if at is None else mixed_BHLK.gather(2, at)


def _by_blocks(tokens_THK: list[Tensor], mask: DocumentMask, dropout: float, scale: float | None) -> Tensor:
    """Attention of queries, keys and values in the blocks of a plan."""
    numbers_BL, plan = mask.numbers_BL, mask.plan
    rows, length = numbers_BL.shape
    row_B1 = torch.arange(rows, device=numbers_BL.device)[:, None]
    numbers_T = (numbers_BL + (length + 1) * row_B1).flatten()  # that differ between rows
    outputs = []
    for queries_NQ, keys_NR in plan.groups:
        sees_NQR = numbers_T[queries_NQ][:, :, None] == numbers_T[keys_NR][:, None]
        if mask.window is not None:
            sees_NQR &= (queries_NQ[:, :, None] - keys_NR[:, None]).abs() <= mask.window
        if mask.causal:
            sees_NQR &= queries_NQ[:, :, None] >= keys_NR[:, None]
        places = (queries_NQ, keys_NR, keys_NR)
        query, key, value = [states[at].transpose(1, 2) for states, at in zip(tokens_THK, places, strict=True)]
        mixed = scaled_dot_product_attention(
            query, key, value, attn_mask=sees_NQR[:, None], dropout_p=dropout, scale=scale
        )
        outputs.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[plan.place_T]


def _by_kernel(tokens_THK: list[Tensor], mask: DocumentMask, dropout: float, scale: float | None) -> Tensor:
    """Attention of queries, keys and values by torch's kernel, which has no dropout."""
    bounds, longest = bounds_on(mask.documents, mask.device), mask.documents.longest
    before = -1 if mask.window is None else mask.window
    window = (before, 0 if mask.causal else before)
    query, key, value = tokens_THK
    mixed: Any = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=window)
    return mixed


def bounds_on(documents: DocumentLayout, device: torch.device) -> Tensor:
    """Bounds of the documents on the device, int32 of shape `(documents + 1,)`, as kernels take them."""
    return _on(documents.bounds.astype(np.int32), device)
