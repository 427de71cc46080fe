"""Latency by a clock that only counts, and what zeros and int8 leave of a model."""

import runpy
from pathlib import Path

import pytest
import torch

from hf_effpt.core.errors import EffptError
from tests import tiny

EXAMPLES = Path(__file__).parents[3] / "examples"
TIMES, MEMORY = (runpy.run_path(str(EXAMPLES / f"{name}.py")) for name in ("latency", "memory_baselines"))
CALLS, WARM_UP, latency = (TIMES[name] for name in ("CALLS", "WARM_UP", "latency"))
in_int8, with_zeros = MEMORY["in_int8"], MEMORY["with_zeros"]
sparse_bytes, stored_bytes = MEMORY["sparse_bytes"], MEMORY["stored_bytes"]


def stock(**changes):
    torch.manual_seed(0)
    return tiny.model({}, **changes).export()


def test_models_take_turns_and_are_as_they_were():
    models = {"a": stock(), "b": stock(num_hidden_layers=2).train()}
    order, time, slow = [], [0.0], {"a": 0.002, "b": 0.001}
    for name, model in models.items():

        def seen(module, args, output, name=name):
            assert not module.training
            assert not torch.is_grad_enabled()
            order.append((name, len(args[0])))
            time[0] += slow[name] * len(args[0])

        model.base_model.register_forward_hook(seen)
    found = latency(models, 16, batch_sizes=(1, 4), rounds=2, now=lambda: time[0])
    assert order[: 4 * WARM_UP] == [(n, s) for n in "ab" for s in (1, 4) for _ in range(WARM_UP)]
    turns = order[4 * WARM_UP :: CALLS]
    assert turns == [("a", 1), ("a", 4), ("b", 1), ("b", 4), ("b", 1), ("b", 4), ("a", 1), ("a", 4)]
    assert found["a"][4].median == pytest.approx(8.0)
    assert found["b"][1].median == found["b"][1].high == pytest.approx(1.0)
    assert found["b"][1].rounds == 2
    assert [models[name].training for name in "ab"] == [False, True]


def test_latency_refuses_what_cannot_be():
    with pytest.raises(EffptError, match="Rows of 64 tokens are longer than `a` can read, 32"):
        latency({"a": stock()}, 64)
    with pytest.raises(EffptError, match="rounds=1"):
        latency({"a": stock()}, 16, rounds=1)


def test_the_smallest_weights_are_zero_and_no_others():
    model = stock()
    there = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    pruned = with_zeros(model, there - 5000)
    assert sum(int(parameter.count_nonzero()) for parameter in pruned.parameters()) == there - 5000
    before, kept, gone = dict(model.named_parameters()), [], []
    for name, parameter in pruned.named_parameters():
        changed = parameter != before[name]
        assert (".layer." in name and name.endswith("weight") and "LayerNorm" not in name) or not changed.any(), name
        if ".layer." in name and parameter.ndim == 2:
            kept.append(before[name][~changed].abs())
            gone.append(before[name][changed].abs())
    assert torch.cat(gone).max() <= torch.cat(kept).min()
    assert pruned.num_parameters() == model.num_parameters()
    again = with_zeros(pruned, there - 6000)
    assert sum(int(parameter.count_nonzero()) for parameter in again.parameters()) == there - 6000
    with pytest.raises(EffptError, match="only the 32,768 weights of the layers are pruned"):
        with_zeros(model, there - 40_000)
    with pytest.raises(EffptError, match="are to be left"):
        with_zeros(model, there + 1)


def test_bytes_of_zeros_and_of_int8():
    model = stock()
    assert stored_bytes(model) == pytest.approx(4 * model.num_parameters(), abs=30_000)
    pruned = with_zeros(model, 20_000)
    assert stored_bytes(pruned) == stored_bytes(model)  # written as they are, zeros are numbers like others
    assert sparse_bytes(model) == 4 * sum(int(parameter.count_nonzero()) for parameter in model.parameters()) + sum(
        min(4 * int((parameter == 0).sum()), -(-parameter.numel() // 8)) for parameter in model.parameters()
    )
    assert 4 * 20_000 < sparse_bytes(pruned) < 4 * 20_000 + model.num_parameters() // 8 + 100
    small, ids = in_int8(model), torch.randint(5, tiny.VOCAB, (2, 16))
    assert (
        stored_bytes(model) - stored_bytes(small) > 2 * 32_768
    )  # three bytes fewer a weight, but for what comes along
    assert torch.allclose(small(ids).logits, model(ids).logits, atol=0.05)
    assert not torch.equal(small(ids).logits, model(ids).logits)
    assert type(model.base_model.encoder.layer[0].output.dense) is torch.nn.Linear
