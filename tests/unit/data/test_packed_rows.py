import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets

from hf_effpt.core.errors import EffptError
from hf_effpt.data import PackedRows, corpus_of, pack

FIXED = Features({"input_ids": List(Value("int32"), length=4)})


@pytest.fixture
def packed(tokenizer, documents):
    return pack(corpus_of(documents), tokenizer, sequence_length=16, isolate_documents=True, validation=None)["train"]


def assert_reads(dataset: Dataset) -> None:
    """Rows read by number are what `datasets` itself gives."""
    rows = PackedRows(dataset)
    assert len(rows) == len(dataset)
    numbers = np.random.default_rng(0).integers(0, len(dataset), 50)
    got = rows.rows(numbers)
    for name in dataset.column_names:
        assert got[name].dtype == np.int64
        assert got[name].tolist() == [dataset[int(number)][name] for number in numbers]


def test_reads_packed_rows(packed):
    assert PackedRows(packed).sequence_length == 16
    assert_reads(packed)


def test_reads_shuffled_selected_sliced_and_joined_rows(packed):
    assert_reads(packed.shuffle(seed=1))
    assert_reads(packed.select(range(5, 20)))
    assert_reads(packed.select([7, 3, 3]))
    assert_reads(packed.train_test_split(0.3, seed=0)["test"])
    assert_reads(concatenate_datasets([packed.select(range(3, 8)), packed.shuffle(seed=2)]))
    assert_reads(packed.remove_columns("document_ids").with_format("torch").with_format(None))


def test_views_are_not_copies(packed):
    block = PackedRows(packed)._blocks["input_ids"][0]
    assert not block.flags.owndata
    assert not block.flags.writeable


def test_row_numbers_are_checked(packed):
    rows = PackedRows(packed.select(range(5)))
    assert rows.rows(np.array([], int))["input_ids"].shape == (0, 16)
    for wrong in (-1, 5):
        with pytest.raises(IndexError, match=r"must be in 0\.\.4"):
            rows.rows(np.array([0, wrong]))


def test_fits_only_fixed_rows_of_tokens():
    mask_features = Features({"attention_mask": List(Value("int8"), length=4)})
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]]}, features=FIXED)
    assert PackedRows.fits(rows)
    assert not PackedRows.fits(Dataset.from_dict({"input_ids": [[1, 2, 3, 4]]}))
    # The column would be lost on the way, whatever its length.
    attention = Dataset.from_dict({"attention_mask": [[1, 1, 1, 0]]}, features=mask_features)
    assert not PackedRows.fits(concatenate_datasets([rows, attention], axis=1))
    assert not PackedRows.fits(rows.rename_column("input_ids", "tokens"))
    assert not PackedRows.fits(rows.with_transform(lambda batch: batch))
    assert not PackedRows.fits([{"input_ids": [1, 2, 3, 4]}])
    assert not PackedRows.fits(rows.to_iterable_dataset())
    with pytest.raises(EffptError, match="cannot be read as packed"):
        PackedRows(Dataset.from_dict({"input_ids": [[1, 2], [3]]}))
