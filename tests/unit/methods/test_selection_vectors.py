"""What strategies that see vectors have in common: what they promise, and what they are built of."""

import copy
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_effpt.core import processes
from hf_effpt.methods.selection.strategies.core_set import CoreSet
from hf_effpt.methods.selection.strategies.discriminative import Discriminative
from hf_effpt.methods.selection.strategies.perceptrons import PerceptronEnsemble
from hf_effpt.methods.selection.vectors import FAR, MEMORY, Moments, Networks, area_under_curve, vector_size
from hf_effpt.models import EffptBertConfig, EffptElectraConfig

from .vector_pools import generator, made, pool

KINDS = [PerceptronEnsemble, CoreSet, Discriminative]
SIZE, ROWS, KEPT = 80, 24, 12


def candidates(step, rows=ROWS):
    vectors_ND = torch.randn(rows, SIZE, generator=generator(step + 100))
    return pool(vectors_ND, step, extras=torch.rand(rows, 3, generator=generator(step + 1000)))


def losses_of(rows):
    return 3.0 + rows.seen[:, 0] + rows.seen[:, -1]


@lru_cache
def _practised(kind, seed):
    strategy = made(kind, SIZE, seed)
    for step in range(-60, 0):
        rows = candidates(step)
        strategy.learn(rows, losses_of(rows))
    return strategy


def practised(kind, seed=3):
    """A strategy that has learned from enough rows to know something; the ensemble is believed."""
    strategy = copy.deepcopy(_practised(kind, seed))
    assert kind is not PerceptronEnsemble or strategy.correlation > 0.4
    return strategy


def run(strategy, steps, start=0):
    """Picks and learns, and returns what was picked in each step."""
    picks = []
    for step in range(start, start + steps):
        rows = candidates(step)
        picks.append(strategy.pick(rows, KEPT))
        trained = rows.of(picks[-1])
        strategy.learn(trained, losses_of(trained))
    return picks


def states_equal(one, other):
    return all(torch.equal(one.state_dict()[name], other.state_dict()[name]) for name in one.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_rows_as_asked_for_are_picked_each_once_and_in_rising_order(kind):
    strategy = made(kind, SIZE)
    for number in (1, 2, 5, KEPT, ROWS):
        picked = strategy.pick(candidates(0), number).tolist()
        assert len(picked) == number
        assert picked == sorted(set(picked))
        assert set(picked) <= set(range(ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_picks_and_others_others(kind):
    one, same, other = practised(kind), practised(kind), practised(kind, seed=4)
    picks = [run(strategy, 5) for strategy in (one, same, other)]
    assert all(map(torch.equal, picks[0], picks[1]))
    assert not all(map(torch.equal, picks[0], picks[2]))
    assert states_equal(one, same)


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_from_the_buffers_gives_the_same_picks_to_the_bit(kind):
    whole, half = practised(kind), practised(kind)
    expected = run(whole, 14)
    run(half, 7)
    resumed = made(kind, SIZE, seed=99)
    resumed.load_state_dict(half.state_dict())
    assert all(map(torch.equal, run(resumed, 7, start=7), expected[7:]))
    assert states_equal(resumed, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_anew_forgets_everything(kind):
    used, new = made(kind, SIZE), made(kind, SIZE)
    run(used, 3)
    assert not states_equal(used, new)
    used.draw(3)
    assert states_equal(used, new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [True, False])
def test_7_permuting_the_candidates_permutes_the_picks(kind, new):
    strategy = made(kind, SIZE) if new else practised(kind)
    run(strategy, 0 if new else 3)
    rows, order = candidates(50), torch.randperm(ROWS, generator=generator(5))
    shuffled = copy.deepcopy(strategy)
    picked, picked_shuffled = strategy.pick(rows, KEPT), shuffled.pick(rows.of(order), KEPT)
    assert set(rows.ids_N[picked].tolist()) == set(rows.of(order).ids_N[picked_shuffled].tolist())
    assert states_equal(strategy, shuffled)


@pytest.mark.parametrize("kind", KINDS)
def test_6_no_global_generator_moves(kind):
    before = torch.get_rng_state()
    run(made(kind, SIZE), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_meta_device_only_shapes_are_computed(kind):
    """So nothing asks for a value, which would wait for the device; and the work is counted."""
    strategy = made(kind, SIZE)
    rows = candidates(0)
    strategy.pick(rows, KEPT)
    with FlopCounterMode(display=False) as real:
        strategy.learn(rows, losses_of(rows))
        picked = strategy.pick(rows, KEPT)
    strategy.to("meta")
    rows = type(rows)(rows.keys_N.to("meta"), rows.ids_N.to("meta"), rows.seen.to("meta"), 0, 0.5, 3)
    with FlopCounterMode(display=False) as counted:
        strategy.learn(rows, torch.zeros(ROWS, device="meta"))
        assert strategy.pick(rows, KEPT).shape == picked.shape
    assert counted.get_total_flops() == real.get_total_flops() > 0
    strategy.draw(5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2, 9])
@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
def test_constant_vectors_and_losses_and_single_rows_keep_all_numbers_finite(kind, number, value):
    strategy = made(kind, SIZE)
    for step in range(4):
        rows = pool(torch.full((number, SIZE), value), step, extras=torch.full((number, 3), value))
        assert len(strategy.pick(rows, number)) == number
        strategy.learn(rows, torch.full((number,), 2.5))
        assert all(buffer.isfinite().all() for buffer in strategy.buffers())
    rows = candidates(9)
    assert len(strategy.pick(rows, KEPT)) == KEPT
    strategy.learn(rows, losses_of(rows))
    assert all(tensor.isfinite().all() for tensor in strategy.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_computed_in_fp32_in_a_model_of_half_precision_and_under_autocast(kind):
    plain, half = practised(kind), practised(kind)
    half.to(torch.bfloat16)
    expected = run(plain, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, run(half, 8), expected))
    assert states_equal(plain, half)


@pytest.mark.parametrize("kind", [CoreSet, Discriminative])
def test_what_stands_behind_the_vectors_does_not_count_for_distances_and_classes(kind):
    with_extras, without = made(kind, SIZE), made(kind, SIZE)
    for step in range(5):
        rows = candidates(step)
        other = pool(rows.seen[:, :SIZE], step, extras=torch.full((ROWS, 3), 1e6))
        picked = with_extras.pick(rows, KEPT)
        assert torch.equal(picked, without.pick(other, KEPT))
        with_extras.learn(rows.of(picked), torch.zeros(KEPT))
        without.learn(other.of(picked), torch.zeros(KEPT))


@pytest.mark.parametrize("kind", KINDS)
def test_no_strategy_has_parameters(kind):
    strategy = made(kind, SIZE)
    assert not list(strategy.parameters())
    assert not any(buffer.requires_grad for buffer in strategy.buffers())


# What they are built of.


def test_embeddings_have_a_size_of_their_own_in_electra_only():
    bert = EffptBertConfig(hidden_size=48, num_attention_heads=4)
    electra = EffptElectraConfig(hidden_size=48, embedding_size=16, num_attention_heads=4)
    assert [vector_size(bert, scorer) for scorer in ("embedding", "first_layer", "full")] == [48, 48, 48]
    assert [vector_size(electra, scorer) for scorer in ("embedding", "first_layer", "full")] == [16, 48, 48]


def test_running_moments_are_those_of_all_rows_until_the_memory_is_full():
    moments = Moments(5)
    rows_ND = 100 + torch.randn(600, 5, generator=generator(), dtype=torch.float64)
    for part in rows_ND.split([1, 7, 200, 392]):
        moments.take(part)
    assert torch.allclose(moments.mean, rows_ND.mean(dim=0), rtol=0, atol=1e-12)
    assert torch.allclose(moments.variance, rows_ND.var(dim=0, correction=0), rtol=0, atol=1e-12)
    assert moments.count == 600
    standardised = moments.standardised(rows_ND)
    assert standardised.dtype == torch.float32
    assert torch.allclose(standardised.mean(dim=0), torch.zeros(5), atol=1e-6)
    for _ in range(60):
        moments.take(torch.zeros(1000, 5))
    assert moments.count == MEMORY
    assert moments.mean.max() < 0.1  # what was long ago has faded


def test_a_feature_that_was_constant_ends_where_others_do():
    moments = Moments(2)
    moments.take(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    assert moments.standardised(torch.tensor([[1.0, 2.0], [5.0, 1e9]])).tolist() == [[0.0, 1.0], [FAR, FAR]]


def test_networks_have_the_outputs_and_gradients_that_autograd_finds():
    networks = Networks(3, 7, 5)
    networks.draw(1, 2)
    rows_ND, target_N = torch.randn(11, 7, generator=generator()), torch.randn(11, generator=generator(1))
    weights = [weight.clone().requires_grad_() for weight in networks.weights]
    outputs_EN = torch.stack(
        [
            F.linear(F.linear(rows_ND, first_DH.T, bias_H).relu(), last_H[None], offset[None])[:, 0]
            for first_DH, bias_H, last_H, offset in zip(*weights, strict=True)
        ]
    )
    found_EN, hidden_ENH = networks(rows_ND)
    assert torch.allclose(found_EN, outputs_EN, atol=1e-6)
    expected = torch.autograd.grad(((outputs_EN - target_N) ** 2).mean(dim=1).sum(), weights)
    found = networks.gradients(rows_ND, hidden_ENH, 2 * (found_EN - target_N) / 11)
    for ours, theirs in zip(networks.split(found), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_networks_begin_as_linear_layers_do():
    networks = Networks(4, 64, 32)
    networks.draw(1, 2)
    for weight, inputs in zip(networks.weights, (64, 64, 32, 32), strict=True):
        assert weight.abs().max() <= inputs**-0.5
    first_EDH = networks.weights[0]
    assert first_EDH.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.03)
    assert not torch.equal(first_EDH[0], first_EDH[1])


def test_the_area_under_the_curve_counts_pairs_and_ties_as_one_half():
    ones, zeros = torch.tensor([0.3, 0.5, 0.5, 0.9, 7.0]), torch.tensor([0.5, 0.1, 0.9, -7.0])
    counts_P, counts_Q = torch.tensor([1.0, 1, 1, 1, 0]), torch.tensor([1.0, 1, 1, 0])
    wins = sum((one > zero) + 0.5 * (one == zero) for one in ones[:4] for zero in zeros[:3]) / 12
    assert area_under_curve(ones, zeros, counts_P, counts_Q).item() == pytest.approx(float(wins))
    assert area_under_curve(ones, zeros, counts_P, torch.zeros(4)) == 0


def test_gather_leaves_the_values_of_one_process_and_puts_those_of_several_one_behind_the_other(monkeypatch):
    values = torch.arange(6).view(3, 2)
    assert processes.gather(values) is values

    def all_gather(parts, own):
        assert not own.is_meta
        for rank, part in enumerate(parts):
            part.copy_(own + 10 * rank)

    two = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2, all_gather=all_gather
    )
    monkeypatch.setattr(processes, "distributed", two)
    assert torch.equal(processes.gather(values.T), torch.cat([values.T, values.T + 10]))
    assert processes.gather(values.to("meta")).shape == (6, 2)
