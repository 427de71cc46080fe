"""Core-set: which points are picked, what counts as far, and what the queue is for."""

import numpy as np
import pytest
import torch

from hf_effpt.methods.selection.picking import UNIFORM, by_score, chance
from hf_effpt.methods.selection.strategies.core_set import CoreSet, _nearest, k_centre

from .vector_pools import generator, made, pool


def line(*places):
    return torch.tensor(places)[:, None].float()


def greedily(points, number, centres):
    """By the definition, in fp64."""
    points, centres, picked = np.float64(points), [*np.float64(centres)], []
    for _ in range(number):
        nearest = [-1 if i in picked else min(((p - c) ** 2).sum() for c in centres) for i, p in enumerate(points)]
        picked.append(int(np.argmax(nearest)))
        centres.append(points[picked[-1]])
    return picked


def test_3_points_on_a_line_are_picked_from_afar_to_near():
    assert k_centre(line(1, 2, 10), 2, line(0)).tolist() == [2, 1]


def test_3_outliers_are_not_picked():
    assert k_centre(line(0, 1, 2, 10), 3, outliers=0.25).tolist() == [0, 2, 1]


def test_the_picks_are_those_of_the_definition():
    for seed in range(5):
        points_ND = torch.randn(30, 6, generator=generator(seed))
        centres_CD = torch.randn(7, 6, generator=generator(seed + 100))
        assert k_centre(points_ND, 12, centres_CD).tolist() == greedily(points_ND, 12, centres_CD)


def test_without_centres_the_first_is_the_farthest_from_the_mean_which_then_is_no_centre():
    assert k_centre(line(0, 4, 5, 6, 11), 2).tolist() == [4, 0]
    # were the mean (6) a centre, 0 would follow; farthest from 13 alone is the same, from the two then 6
    assert k_centre(line(0, 5, 6, 13), 3).tolist() == [3, 0, 2]


def test_a_centre_that_does_not_count_is_as_good_as_none():
    points, centres = line(0, 1, 2, 10), line(10.5, -5)
    one, none = torch.tensor([True, False]), torch.tensor([False, False])
    assert k_centre(points, 2, centres, real_C=one).tolist() == k_centre(points, 2, centres[:1]).tolist() == [0, 2]
    assert k_centre(points, 3, centres, real_C=none).tolist() == k_centre(points, 3).tolist()


def test_outliers_are_the_farthest_from_the_nearest_centre():
    points = line(0, 1, 2, 10)
    assert k_centre(points, 2, line(9), outliers=0.25).tolist() == [1, 2]  # not 0, which is 9 away
    assert set(k_centre(points, 4, line(9), outliers=0.25).tolist()) == {0, 1, 2, 3}  # where all are wanted, all are


def test_of_equally_far_points_the_lower_number_is_first_and_none_is_picked_twice():
    assert k_centre(line(5, 5, 5, 5), 3).tolist() == [0, 1, 2]
    assert k_centre(line(1, 3, 3, 1), 4, line(2)).tolist() == [0, 1, 2, 3]
    assert k_centre(line(0, 1), 0).tolist() == []


def nearest(strategy, vectors_ND):
    """The squared distances from the nearest row of the queue."""
    in_use_C = torch.arange(len(strategy.queue)) < strategy.size
    return _nearest(strategy.points(pool(vectors_ND)), strategy.queue, in_use_C)


def test_distances_never_become_negative_by_rounding():
    points_ND = torch.randn(50, 64, generator=generator()) * 1e3
    strategy = made(CoreSet, 64)
    rows = pool(points_ND)
    strategy.learn(rows, torch.zeros(50))
    assert nearest(strategy, points_ND).min() >= 0
    assert nearest(strategy, points_ND).max() < 1e-5


def test_picks_do_not_track_the_length_of_vectors():
    vectors_ND = torch.randn(40, 16, generator=generator())
    lengths_N = torch.rand(40, 1, generator=generator(1)) * 50 + 0.1
    picks = [made(CoreSet, 16).pick(pool(vectors), 10) for vectors in (vectors_ND, vectors_ND * lengths_N)]
    assert torch.equal(*picks)


def test_projected_vectors_have_about_the_distances_they_had():
    strategy = made(CoreSet, 512)
    vectors_ND = torch.randn(60, 512, generator=generator())
    points_ND = strategy.points(pool(vectors_ND))
    assert points_ND.shape == (60, 64)
    assert strategy.queue.shape == (1024, 64)
    ratio = torch.pdist(points_ND) / torch.pdist(torch.nn.functional.normalize(vectors_ND))
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.03)
    assert ratio.std() < 0.15  # about 1 / sqrt(2 * 64)


def test_short_vectors_are_not_projected():
    strategy = made(CoreSet, 64)
    assert "projection" not in strategy.state_dict()
    assert torch.allclose(strategy.points(pool(torch.eye(64) * 7)), torch.eye(64))


def test_the_queue_holds_the_last_rows_trained_on():
    strategy = made(CoreSet, 4, queue=5)
    for step in range(3):
        strategy.learn(pool(torch.eye(4)[[step, 3]], step), torch.zeros(2))
    assert strategy.size == 5
    assert strategy.queue[:, 3].tolist() == [1, 1, 0, 1, 0]  # the sixth in the place of the first
    assert nearest(strategy, torch.eye(4)).tolist() == [2.0, 0.0, 0.0, 0.0]  # the first row has been forgotten


def test_a_share_of_the_picks_is_drawn_uniformly():
    """Of rows with the same vector but one, greedy picks come by number; the others by chance."""
    counts = torch.zeros(100)
    for step in range(300):
        strategy = made(CoreSet, 3, explore=0.2, outliers=0.0)
        rows = pool(torch.eye(3)[:1].expand(100, 3), step, ids=range(100))
        counts[strategy.pick(rows, 10)] += 1
    assert (counts[:8] == 300).all()
    assert counts.sum() == 3000
    expected = 300 * 2 / 92
    assert (counts[8:] - expected).square().mean().sqrt() < 1.5 * expected**0.5


def test_10_of_a_text_that_is_half_duplicates_few_are_kept_and_by_chance_half():
    originals = torch.randn(10, 32, generator=generator(7))
    strategy = made(CoreSet, 32)
    core_set, random = [], []
    for step in range(8):
        noise = generator(step)
        copies_N = torch.rand(64, generator=noise) < 0.5
        vectors_ND = torch.randn(64, 32, generator=noise)
        which_N = torch.randint(10, (64,), generator=noise)
        vectors_ND[copies_N] = originals[which_N[copies_N]]
        rows = pool(vectors_ND, step)
        picked = strategy.pick(rows, 32)
        core_set.append(copies_N[picked])
        random.append(copies_N[by_score(chance(rows, UNIFORM), rows)[:32]])
        strategy.learn(rows.of(picked), torch.zeros(32))
    assert torch.cat(random).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.cat(core_set).float().mean() < 0.15
