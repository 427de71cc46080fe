"""Attention within documents block by block: the numbers of a mask over the row, from fewer products and no mask."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from hf_effpt.core.document_layout import BLOCK, DocumentLayout
from hf_effpt.models import document_blocks
from hf_effpt.models.document_blocks import DocumentMask
from hf_effpt.models.encoder_inputs import isolate_documents, within


def numbered(rows, length, mean, seed=0, padding=0):
    """Documents of about `mean` tokens, the shortest of one, that fill rows but for `padding` of the first row."""
    random = np.random.default_rng(seed)
    ids = np.zeros((rows, length), np.int64)
    for row in ids:
        lengths = 1 + random.exponential(mean, size=length).astype(int)
        row[:] = np.repeat(np.arange(length) + 1, lengths)[:length]
    ids[0, length - padding :] = 0
    return torch.from_numpy(ids)


def states(rows, length):
    """Queries, keys and values as layers have them: heads beside tokens in memory."""
    return [torch.randn(rows, length, 2, 8, dtype=torch.float64).transpose(1, 2).requires_grad_() for _ in range(3)]


def with_gradients(inputs, mask):
    mixed = scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)
    return [mixed, *torch.autograd.grad(mixed.square().sum(), inputs)]


def in_full(ids, window):
    return isolate_documents(ids) if window is None else isolate_documents(ids) & within(window, ids)


@pytest.mark.parametrize("mean", [5, 100, 3000])
@pytest.mark.parametrize(("rows", "length"), [(3, 512), (2, 700), (1, 200)])
@pytest.mark.parametrize("window", [None, 4, 64, 600])
def test_equals_a_mask_over_the_row(rows, length, mean, window):
    ids, inputs = numbered(rows, length, mean, padding=30), states(rows, length)
    mask = DocumentMask.make(ids, DocumentLayout.of(ids), window)
    for ours, expected in zip(with_gradients(inputs, mask), with_gradients(inputs, in_full(ids, window)), strict=True):
        assert torch.allclose(ours, expected, atol=1e-10)


def test_queries_at_some_positions():
    ids, (query, key, value) = numbered(2, 512, 60), states(2, 512)
    at = torch.stack([torch.randperm(512)[:9] for _ in range(2)])
    mask = DocumentMask.make(ids, DocumentLayout.of(ids))
    wanted = at[:, None, :, None].expand(-1, 2, -1, 8)
    some = scaled_dot_product_attention(query.gather(2, wanted), key, value, attn_mask=mask.at(at))
    every = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(some, every.gather(2, wanted))


@pytest.mark.parametrize("mean", [2, 40, 150, 5000])
def test_blocks_hold_whole_documents_and_every_token_once(mean):
    ids = numbered(4, 900, mean, padding=17)
    found = DocumentLayout.of(ids)
    begins, ends, sizes = found.segments[found.segments[:, 0].argsort()].T
    assert begins[0] == 0
    assert ends[-1] == ids.numel()
    assert (begins[1:] == ends[:-1]).all()
    assert np.isin(ends, found.bounds).all()
    assert ((ends - begins <= sizes) & ((sizes % BLOCK == 0) | (sizes == 900))).all()
    assert (begins // 900 == (ends - 1) // 900).all()
    assert found.products <= 4 * 900**2
    assert found.pairs <= found.products


def test_blocks_are_as_full_as_neighbours_allow():
    """Documents of 50, 60, 30, 200 and 172 tokens: the first two fit together, and so does no other pair."""
    ids = torch.from_numpy(np.repeat([1, 2, 3, 4, 5], [50, 60, 30, 200, 172]))[None]
    begins, ends, sizes = DocumentLayout.of(ids).segments.T
    assert (begins.tolist(), ends.tolist()) == ([0, 110, 140, 340], [110, 140, 340, 512])
    assert sizes.tolist() == [128, 128, 256, 256]


def test_a_row_that_blocks_would_not_help_is_one():
    """A document of 897 tokens has a block of 1,024 of its own, and the rest of its row would come on top of that."""
    ids = torch.from_numpy(np.repeat([[1, 2]], [897, 127], axis=1).reshape(1, 1024))
    assert DocumentLayout.of(ids).segments.tolist() == [[0, 1024, 1024]]


def test_products_grow_with_the_row_and_not_with_its_square():
    counts = [DocumentLayout.pieces(2, length, length // 64).products for length in (1024, 2048, 8192)]
    assert counts == [2 * length * BLOCK for length in (1024, 2048, 8192)]


class Largest(TorchDispatchMode):
    """Remembers the most elements that the result of an operation has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            self.most = max(self.most, each.numel() if isinstance(each, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("window", [None, 8])
def test_nothing_is_as_large_as_the_square_of_a_row(window):
    ids, inputs = numbered(1, 1024, 20), states(1, 1024)
    with Largest() as seen:
        with_gradients(inputs, DocumentMask.make(ids, DocumentLayout.of(ids), window))
    assert seen.most <= 1024**2 / 4
    with Largest() as seen:
        with_gradients(inputs, in_full(ids, window))
    assert seen.most >= 1024**2


def kernel(query, key, value, bounds, bounds_of_keys, longest, longest_key, *, scale, window_size):
    """What torch's kernel computes, document by document."""
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, bounds_of_keys)
    assert longest == longest_key == bounds.diff().max()
    outputs = []
    for first, end in pairwise(bounds.tolist()):
        parts = [states[first:end].transpose(0, 1) for states in (query, key, value)]
        before, after = (end - first if size == -1 else size for size in window_size)
        index = torch.arange(end - first)
        near = (index[:, None] - index <= before) & (index - index[:, None] <= after)
        outputs.append(scaled_dot_product_attention(*parts, attn_mask=near, scale=scale).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_of_torch_is_told_the_documents(monkeypatch, window, causal):
    monkeypatch.setattr(document_blocks, "varlen_attn", kernel)
    ids, inputs = numbered(2, 100, 20, padding=7), states(2, 100)
    mask = DocumentMask.make(ids, DocumentLayout.of(ids), window, has_kernel=True, causal=causal)
    full = in_full(ids, window).tril() if causal else in_full(ids, window)
    for ours, expected in zip(with_gradients(inputs, mask), with_gradients(inputs, full), strict=True):
        assert torch.allclose(ours, expected, atol=1e-10)
