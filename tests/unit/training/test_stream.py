from itertools import islice

import numpy as np
import pytest
import torch

from hf_effpt.training.phases import phases_of
from hf_effpt.training.stream import BatchStream, KeyedRows, TrainingStream
from tests import tiny


def take(batches, **settings):
    return list(islice(BatchStream(10, 4, seed=3, **settings), batches))


def test_every_pass_has_every_row_once_in_a_new_order():
    keys = np.concatenate(take(10))
    first, second = keys[:10], keys[10:20]
    assert sorted(first[:, 1]) == sorted(second[:, 1]) == list(range(10))
    assert set(first[:, 0]) == {0}
    assert set(second[:, 0]) == {1}
    assert list(first[:, 1]) != list(second[:, 1])


@pytest.mark.parametrize("start", [0, 4, 12, 10_000_000])
def test_any_point_is_entered_at_once(start):
    straight = BatchStream(10, 4, seed=3).keys(np.arange(start, start + 8))
    assert np.array_equal(np.concatenate(take(2, start=start)), straight)


def test_two_processes_see_what_one_would():
    whole = list(islice(BatchStream(10, 4, seed=3), 6))
    halves = [list(islice(BatchStream(10, 2, seed=3, rank=rank, world=2), 6)) for rank in (0, 1)]
    for step in range(6):
        assert np.array_equal(np.concatenate([halves[0][step], halves[1][step]]), whole[step])


def test_seed_decides_the_order():
    assert not np.array_equal(take(2)[0], next(iter(BatchStream(10, 4, seed=4))))


def test_packed_rows_come_with_their_keys():
    data = tiny.rows(12)
    batch = KeyedRows(data, keyed=True).__getitems__(np.array([[0, 5], [2, 1]]))
    assert batch["example_id"].tolist() == [5, 1]
    assert batch["epoch"].tolist() == [0, 2]
    assert batch["input_ids"].tolist() == [data[5]["input_ids"], data[1]["input_ids"]]


def test_other_data_come_as_examples():
    data = [{"input_ids": [1, 2]}, {"input_ids": [3]}]
    assert KeyedRows(data, keyed=False).__getitems__([(0, 1)]) == [{"input_ids": [3]}]
    assert KeyedRows(data, keyed=True).__getitems__([(7, 1)]) == [{"input_ids": [3], "example_id": 1, "epoch": 7}]


def test_rows_of_batches_with_padding_and_without_are_joined(tmp_path):
    stream = TrainingStream(tiny.arguments(tmp_path), phases_of(tiny.rows(4)), None, keyed=True)
    ids, mask = torch.arange(6).view(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    for batches in ([{"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}], [{"input_ids": ids}] * 2):
        for order in (batches, batches[::-1]):
            stream.begin(0)
            rows = stream.pull(iter(order), 4)
            assert torch.equal(rows["input_ids"], torch.cat([ids, ids]))
            marks = [batch.get("attention_mask", torch.ones_like(ids)) for batch in order]
            assert torch.equal(rows.get("attention_mask", torch.ones(4, 3).long()), torch.cat(marks))
