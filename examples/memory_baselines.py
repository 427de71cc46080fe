"""Baselines that make a trained model smaller in memory but not faster: zeros in its weights, and int8.

A matrix product with unstructured zeros takes as long as one without.
"""

import copy
import io
import warnings

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_effpt.core.errors import EffptError


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model written to a file; tied weights are written once."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


def sparse_bytes(model: nn.Module) -> int:
    """Bytes of the parameters if zeros are left out: the other values, and a bit per position."""
    total = 0
    for parameter in model.parameters():
        whole = parameter.numel() * parameter.element_size()
        values = int(parameter.count_nonzero()) * parameter.element_size()
        total += min(whole, values + -(-parameter.numel() // 8))
    return total


def with_zeros(model: PreTrainedModel, parameters: int) -> PreTrainedModel:
    """Copy with zeros for the smallest weights, so that `parameters` of its parameters are not zero.

    Weights are chosen by absolute value among the weight matrices of all layers together; embeddings, biases,
    normalisations and heads stay. Raises an `EffptError` if the layers have too few weights, or too many are zero.
    """
    pruned = copy.deepcopy(model)
    there = sum(int(parameter.count_nonzero()) for parameter in pruned.parameters())
    weights = [linear.weight for linear in _linear(pruned).values()]
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    zeros = int((magnitudes == 0).sum()) + there - parameters  # those that are there count as the smallest
    if not there - parameters >= 0 or zeros > len(magnitudes):
        raise EffptError(
            f"Of {there:,} parameters {parameters:,} are to be left, but only the {len(magnitudes):,} weights of the "
            f"layers are pruned; leave {there - len(magnitudes):,} to {there:,}."
        )
    gone = torch.zeros_like(magnitudes, dtype=torch.bool)
    gone[magnitudes.argsort(stable=True)[:zeros]] = True
    parts: list[Tensor] = list(gone.split([weight.numel() for weight in weights]))
    with torch.no_grad():
        for weight, part in zip(weights, parts, strict=True):
            weight.masked_fill_(part.view_as(weight), 0.0)
    return pruned


def in_int8(model: PreTrainedModel) -> PreTrainedModel:
    """Copy on the CPU whose layers have int8 weights, and quantise their inputs dynamically.

    By `torch.ao.quantization.quantize_dynamic`, which PyTorch has deprecated in favour of a package of its own
    (torchao) but still has in 2.13. Embeddings and heads stay as they are.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model).cpu().eval(), set(_linear(model)), dtype=torch.qint8
        )


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Linear modules of the layers of a model, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in f".{name}"
    }
