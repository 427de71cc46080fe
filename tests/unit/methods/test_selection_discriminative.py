"""Discriminative active learning: what the classifier learns, what it picks, and what it says of itself."""

import copy
import threading

import pytest
import torch

from hf_effpt.core import processes
from hf_effpt.methods.selection.strategies.discriminative import Classifier, Discriminative, _learned_from

from .vector_pools import generator, made, pool


def drawn(size=8):
    classifier = Classifier(size)
    classifier.draw(1, 2)
    return classifier


def judged(strategy, rows):
    return strategy._scores(strategy.moments.standardised(strategy.vectors(rows)), rows)


def test_fitting_takes_the_steps_of_adam_on_the_balanced_cross_entropy():
    classifier = drawn()
    reference = torch.nn.Sequential(torch.nn.Linear(8, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1))
    first, bias, last, offset = classifier.weights
    for parameter, weight in zip(reference.parameters(), (first[0].T, bias[0], last, offset), strict=True):
        parameter.data.copy_(weight)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)
    rows_ND, labels_N = torch.randn(20, 8, generator=generator()), (torch.arange(20) < 4).float()
    counts_N = (torch.arange(20) % 4 != 3).float()
    weights_N = torch.where(labels_N > 0, 1 / 6, 1 / 24) * counts_N  # 3 rows of one label, 12 of the other
    for _ in range(6):
        logits_N = reference(rows_ND)[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_N, labels_N, weights_N, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for _ in range(3):
        classifier.fit(rows_ND, labels_N, counts_N)
    assert torch.allclose(classifier.logits(rows_ND), reference(rows_ND)[:, 0], atol=1e-5)
    assert classifier.steps == 6.0


def test_logits_are_clipped_and_those_beyond_still_learn():
    classifier = drawn()
    classifier.weights[3].fill_(50.0)
    rows_ND = torch.zeros(4, 8)
    assert classifier.logits(rows_ND).tolist() == [10.0] * 4
    classifier.fit(rows_ND, torch.zeros(4), torch.ones(4))
    assert classifier.weights[3] < 50.0


def test_3_what_is_unlike_the_rows_trained_on_is_picked_first():
    strategy = made(Discriminative, 2, explore=0.0)
    trained, looked_at = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[5.0, 0.0], [0.0, 0.5]])
    # keys of rows that the classifier is fitted on
    fitted = [at for at in range(50) if _learned_from(pool(trained[:1], ids=[at]))]
    strategy.learn(pool(trained, ids=fitted[:2]), torch.zeros(2))
    for step in range(20):
        rows = pool(looked_at, step, ids=fitted[2:4])
        first = strategy.pick(rows, 1)
    assert first.tolist() == [0]
    scores_N = judged(strategy, rows)
    assert scores_N[0] > scores_N[1]


def stream(steps, shifted=0.0, rows=256, kept=128, **resolved):
    """Independent rows in the order in which they come; of each step the mean moves on by `shifted`."""
    strategy = made(Discriminative, 16, **resolved)
    for step in range(steps):
        vectors_ND = torch.randn(rows, 16, generator=generator(step)) + shifted * step
        candidates = pool(vectors_ND, step)
        picked = strategy.pick(candidates, kept)
        strategy.learn(candidates.of(picked), torch.zeros(kept))
    return strategy


def test_3_in_a_stream_of_independent_rows_the_classifier_knows_nothing():
    strategy = stream(60)
    assert strategy.measured == 59  # not in the first step, which has nothing to compare with
    assert 0.45 <= strategy.auc <= 0.55


def test_in_an_ordered_stream_the_classifier_tells_new_rows_from_old():
    assert stream(40, shifted=0.1).auc > 0.7


def test_new_domains_are_picked_before_known_ones():
    strategy = made(Discriminative, 16, explore=0.0)
    for step in range(15):  # all trained on: rows of one domain
        rows = pool(torch.randn(64, 16, generator=generator(step)), step)
        strategy.pick(rows, 32)
        strategy.learn(rows, torch.zeros(64))
    share = []
    for step in range(15, 25):
        vectors_ND = torch.randn(64, 16, generator=generator(step))
        vectors_ND[::4, :4] += 3.0
        share.append((strategy.pick(pool(vectors_ND, step), 16) % 4 == 0).float().mean())
    assert sum(share[5:]) / 5 > 0.7  # a quarter by chance


def test_parts_spread_the_picks_over_what_is_new():
    """What was picked counts as trained on, so that the other of two new domains gets its turn."""
    strategy = made(Discriminative, 2, explore=0.0)
    rows = pool(torch.cat([torch.randn(48, 2, generator=generator()) * 0.1, torch.ones(16, 2)]))
    strategy.learn(rows, torch.zeros(64))
    before = copy.deepcopy(strategy.classifier)
    labels_N = torch.ones(64)
    labels_N[48:] = 0.0
    rows_ND = strategy.moments.standardised(rows.seen[:, :2])
    for part in range(1, 30):
        strategy._fit(rows_ND, labels_N, torch.ones(64), rows, part)
    gap = [
        (of.logits(rows_ND)[48:].mean() - of.logits(rows_ND)[:48].mean()).item()
        for of in (before, strategy.classifier)
    ]
    assert gap[1] < gap[0] - 0.5


def test_with_nothing_trained_on_rows_are_picked_by_chance_and_nothing_is_learned():
    counts = torch.zeros(40)
    strategy = made(Discriminative, 16)
    before = copy.deepcopy(strategy.state_dict())
    for step in range(60):
        rows = pool(torch.randn(40, 16, generator=generator(3)), step, ids=range(40))
        counts[strategy.pick(rows, 10)] += 1
    assert (counts - 15).square().mean().sqrt() < 1.5 * (60 * 0.25 * 0.75) ** 0.5
    assert all(torch.equal(before[name], value) for name, value in strategy.state_dict().items())
    assert strategy.metrics({name: float(value) for name, value in strategy.sums().items()}) == {}


def test_one_row_in_eight_is_never_fitted():
    rows = pool(torch.zeros(8000, 4))
    held_N = _learned_from(rows) == 0
    assert held_N.float().mean().item() == pytest.approx(1 / 8, abs=0.01)
    strategy = made(Discriminative, 4)
    strategy.learn(rows.of(torch.arange(8)), torch.zeros(8))
    vectors_ND = torch.randn(64, 4, generator=generator())
    changed_ND = torch.where(held_N[:64, None], vectors_ND + 100, vectors_ND)
    other = copy.deepcopy(strategy)
    for of, vectors in ((strategy, vectors_ND), (other, changed_ND)):
        of.pick(pool(vectors, ids=range(64)), 32)
    assert 0 < held_N[:64].sum() < 64
    assert all(map(torch.equal, strategy.classifier.buffers(), other.classifier.buffers()))


def test_the_figure_is_the_mean_over_the_steps_of_a_log_entry():
    strategy = stream(30)
    sums = {name: 3 * float(value) for name, value in strategy.sums().items()}
    assert strategy.metrics(sums) == {"selection_auc": pytest.approx(strategy.auc.item())}


def test_outliers_are_left_to_the_draws():
    strategy = made(Discriminative, 2, explore=0.0, outliers=0.1)
    rows = pool(torch.randn(40, 2, generator=generator()))
    strategy.learn(rows, torch.zeros(40))
    rows = pool(torch.cat([rows.seen[:38, :2], torch.full((2, 2), 50.0)]), 1)
    for _ in range(60):
        strategy.learn(pool(rows.seen[:38, :2], 1), torch.zeros(38))
        picked = strategy.pick(rows, 20)
    assert judged(strategy, rows).argmax() >= 38
    assert not {38, 39} & set(picked.tolist())


class Ranks:
    """Processes that are threads: what `torch.distributed` does for `gather`."""

    is_available = is_initialized = staticmethod(lambda: True)

    def __init__(self, number):
        self.number, self.barrier, self.own = number, threading.Barrier(number, timeout=60), [None] * number
        self.rank = threading.local()

    def get_world_size(self):
        return self.number

    def all_gather(self, parts, own):
        self.own[self.rank.index] = own
        self.barrier.wait()
        for part, theirs in zip(parts, self.own, strict=True):
            part.copy_(theirs)
        self.barrier.wait()


def test_8_all_processes_keep_the_same_classifier_though_each_picks_of_its_own_rows(monkeypatch):
    ranks = Ranks(2)
    monkeypatch.setattr(processes, "distributed", ranks)
    strategies, picks, failures = [made(Discriminative, 16) for _ in range(2)], [[], []], []

    def work(rank):
        ranks.rank.index = rank
        try:
            for step in range(6):
                ids_N = torch.arange(32) + 32 * (2 * step + rank)
                rows = pool(torch.randn(32, 16, generator=generator(2 * step + rank)), step, ids_N)
                picks[rank].append(strategies[rank].pick(rows, 16))
                trained = rows.of(picks[rank][-1])
                parts = [processes.gather(values) for values in (trained.keys_N, trained.ids_N, trained.seen)]
                strategies[rank].learn(type(rows)(*parts, step, 0.5, 3), torch.zeros(32))
        except BaseException as error:
            failures.append(error)
            ranks.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not all(map(torch.equal, *picks))
    one, other = (strategy.state_dict() for strategy in strategies)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["classifier.steps"] == 10.0
