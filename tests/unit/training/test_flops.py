import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.training.flops import FlopCounter, ghost_of
from tests import tiny


def batch(rows=2, length=8, masked=3):
    ids = torch.randint(5, tiny.VOCAB, (rows, length))
    positions = torch.arange(masked).expand(rows, -1)
    labels = torch.full_like(ids, -100).scatter(1, positions, 7)
    return {"input_ids": ids, "labels": labels, "masked_positions": positions}


def analytic(rows, length, masked, *, layers=4, h=32, i=64, v=tiny.VOCAB):
    """Forward multiply-adds, twice: 8h² + 4hi + 4Lh a token and layer; the last at masked positions but for K, V."""
    tokens, wanted = rows * length, rows * masked
    full = tokens * (8 * h * h + 4 * h * i + 4 * length * h)
    last = tokens * 4 * h * h + wanted * (4 * h * h + 4 * h * i + 4 * length * h)
    return (layers - 1) * full + last + wanted * (2 * h * h + 2 * h * v)


def test_equals_the_formula_and_backward_is_twice_forward():
    model = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    counted = FlopCounter().count(model, batch())
    assert counted == pytest.approx(3 * analytic(2, 8, 3), rel=0.01)


def test_equals_a_real_run_with_eager_attention():
    model = tiny.model().train()
    model.set_attn_implementation("eager")
    inputs = batch()
    with FlopCounterMode(display=False) as real:
        model(**inputs).loss.backward()
    assert FlopCounter().count(model, inputs) == real.get_total_flops()


def test_counting_touches_neither_weights_nor_generators_nor_watchers():
    model = tiny.model().train()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    inputs = batch()
    weights, generator = tiny.weights(model), torch.get_rng_state()
    FlopCounter().count(model, inputs)
    assert torch.equal(generator, torch.get_rng_state())
    assert not seen
    assert all(torch.equal(weights[name], p) and p.grad is None for name, p in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"


def test_equal_work_is_counted_once(monkeypatch):
    counter, model, runs = FlopCounter(), tiny.model().train(), []
    monkeypatch.setattr(FlopCounter, "_measure", staticmethod(lambda *_: runs.append(1) or 5))
    assert [counter.count(model, batch()), counter.count(model, batch()), counter.count(model, batch(rows=3))] == [
        5,
        5,
        5,
    ]
    assert len(runs) == 2


def test_labels_without_positions_count_as_many():
    model = tiny.model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    with_positions = batch()
    without = {name: value for name, value in with_positions.items() if name != "masked_positions"}
    assert FlopCounter().count(model, without) == FlopCounter().count(model, with_positions)


def test_ghost_has_no_storage():
    assert {tensor.device.type for tensor in ghost_of(tiny.model()).state_dict().values()} == {"meta"}
