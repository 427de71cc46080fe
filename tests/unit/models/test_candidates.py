"""Logits of a few candidates, and log-probabilities of one token: those of the whole vocabulary, in bounded memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_effpt.models import candidates
from hf_effpt.models.candidates import candidate_logits, chunks, log_probabilities

N, K, D, V = 50, 7, 12, 31


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if torch.is_tensor(tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def leaves(dtype=torch.float32):
    torch.manual_seed(3)
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in ((N, D), (V, D), (V,))]


def gradients_of(loss, tensors):
    return torch.autograd.grad(loss, tensors)


def test_gathered_logits_and_gradients_are_the_dense_ones_gathered(monkeypatch):
    monkeypatch.setattr(candidates, "BOUND", 9 * K * D)  # several chunks, the last one short
    output, table, bias = tensors = leaves()
    some = torch.randint(0, V, (N, K))
    gathered = candidate_logits(output, table, bias, some)
    dense = (output @ table.T + bias).gather(1, some)
    torch.testing.assert_close(gathered, dense)
    push = torch.randn(N, K)
    for one, other in zip(
        gradients_of((gathered * push).sum(), tensors), gradients_of((dense * push).sum(), tensors), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_with_the_whole_vocabulary_as_candidates_it_is_the_stock_loss():
    output, table, bias = leaves()
    wanted = torch.randint(0, V, (N,))
    logits = candidate_logits(output, table, bias, torch.arange(V).expand(N, V))
    expected = torch.nn.functional.cross_entropy(output @ table.T + bias, wanted)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, wanted), expected)


def test_the_order_of_the_candidates_does_not_matter():
    output, table, bias = leaves()
    some, order = torch.randint(0, V, (N, K)), torch.randperm(K)
    logits = candidate_logits(output, table, bias, some)
    assert torch.equal(candidate_logits(output, table, bias, some[:, order]), logits[:, order])


def test_a_case_worked_by_hand():
    """Five tokens, three candidates, one dimension."""
    output, table, bias = torch.tensor([[2.0]]), torch.tensor([[0.0], [1.0], [-1.0], [0.5], [3.0]]), torch.zeros(5)
    bias[4] = -5.0
    logits = candidate_logits(output, table, bias, torch.tensor([[4, 1, 2]]))
    assert logits.tolist() == [[1.0, 2.0, -2.0]]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(math.exp(1) + math.exp(2) + math.exp(-2)) - 2)


def test_half_precision_has_logits_in_float32_and_its_own_gradients():
    output, table, bias = leaves(torch.bfloat16)
    some = torch.randint(0, V, (N, K))
    logits = candidate_logits(output, table, bias, some)
    assert logits.dtype == torch.float32
    exact = (output.float() @ table.float().T + bias.float()).gather(1, some)
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.02)
    assert {gradient.dtype for gradient in gradients_of(logits.sum(), (output, table, bias))} == {torch.bfloat16}


@pytest.mark.parametrize("positions", [1, N])
def test_log_probabilities_and_gradients_are_those_of_the_whole_softmax(monkeypatch, positions):
    monkeypatch.setattr(candidates, "BOUND", 9 * V)
    output, table, bias = tensors = leaves()
    wanted = torch.randint(0, V, (N,))
    ours = log_probabilities(output[:positions], table, bias, wanted[:positions])
    whole = (output[:positions] @ table.T + bias).log_softmax(dim=1).gather(1, wanted[:positions, None])[:, 0]
    torch.testing.assert_close(ours, whole)
    push = torch.randn(positions)
    for one, other in zip(
        gradients_of((ours * push).sum(), tensors), gradients_of((whole * push).sum(), tensors), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bound", [600, 1 << 23])
def test_no_tensor_grows_with_the_batch_in_either_direction(monkeypatch, bound):
    monkeypatch.setattr(candidates, "BOUND", bound)
    output, table, bias = leaves()
    largest = {}
    for name, logits in (
        ("candidates", lambda: candidate_logits(output, table, bias, torch.randint(0, V, (N, K))).sum()),
        ("vocabulary", lambda: log_probabilities(output, table, bias, torch.randint(0, V, (N,))).sum()),
    ):
        with Largest() as seen:
            logits().backward()
        largest[name] = seen.numel
    if bound == 600:
        assert max(largest.values()) <= 600
    else:  # the counter would see it
        assert largest == {"candidates": N * K * D, "vocabulary": N * V}


@pytest.mark.parametrize(("positions", "width", "lengths"), [(10, 4, [3, 3, 3, 1]), (2, 100, [1, 1]), (0, 4, [])])
def test_chunks_cover_every_position_once_and_stay_within_the_bound(monkeypatch, positions, width, lengths):
    monkeypatch.setattr(candidates, "BOUND", 12)
    parts = [list(range(positions))[part] for part in chunks(positions, width)]
    assert [len(part) for part in parts] == lengths
    assert [position for part in parts for position in part] == list(range(positions))
