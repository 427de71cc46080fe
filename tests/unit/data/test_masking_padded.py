"""Masks of examples of different lengths do not depend on who pads them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_effpt.core.errors import EffptError
from hf_effpt.data import DataCollatorForMaskedLM
from tests import tiny
from tests.unit.data.to_mask import (
    COLLATORS,
    TOKENIZER,
    VOCAB,
    assert_equal,
    packed_batch,
)


def masked_alone(collator, text, **columns):
    """Labels and corrupted ids of an example that nobody pads."""
    out = collator([{"input_ids": text, **columns}])
    return out["labels"][0], out["input_ids"][0]


@settings(deadline=None, max_examples=25)
@given(
    COLLATORS,
    st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=29).map(lambda text: [*text, 9]), min_size=2, max_size=4),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
)
def test_masks_do_not_depend_on_who_pads_where(collator, texts, more, named, by_documents):
    """Rate and choice are those of the example alone: in a list, in arrays padded on either side, with any mark."""
    width = max(map(len, texts)) + more
    keys = [{"example_id": 7 * row, "epoch": 1} if named else {} for row in range(len(texts))]
    listed = collator([{"input_ids": text, **key} for text, key in zip(texts, keys, strict=True)])
    columns = {"example_id": 7 * np.arange(len(texts)), "epoch": np.ones(len(texts), int)} if named else {}
    mark = "document_ids" if by_documents else "attention_mask"
    for side in ("left", "right"):
        ids, real = np.zeros((len(texts), width), int), np.zeros((len(texts), width), int)
        spans = [slice(width - len(text), None) if side == "left" else slice(len(text)) for text in texts]
        for row, text in enumerate(texts):
            ids[row, spans[row]], real[row, spans[row]] = text, 1
        for marks in ({mark: real}, {}):  # without a mark by the padding token
            out = collator({"input_ids": ids, **marks, **columns})
            for row, text in enumerate(texts):
                labels, corrupted = masked_alone(collator, text, **keys[row])
                assert torch.equal(out["labels"][row, spans[row]], labels)
                assert torch.equal(out["input_ids"][row, spans[row]], corrupted)
                if width > min(map(len, texts)):
                    told = out["document_ids" if mark in marks and by_documents else "attention_mask"][row]
                    assert told.nonzero().flatten().tolist() == list(range(width))[spans[row]]
                assert torch.equal(listed["labels"][row, : len(text)], labels)
                assert (out["labels"][row] != -100).sum() == (labels != -100).sum()
                assert (labels != -100).sum() == min(
                    sum(token > 4 for token in text), max(1, round(collator.mlm_probability * len(text)))
                )


def test_a_long_example_is_masked_at_the_rate_of_its_tokens():
    """Padding to twice the length changes neither the number of masks nor their places."""
    text = packed_batch(1, 300)["input_ids"][0].tolist()
    collator = DataCollatorForMaskedLM(TOKENIZER)
    labels, corrupted = masked_alone(collator, text)
    padded = {"input_ids": [*text, *[0] * 300], "attention_mask": [1] * 300 + [0] * 300}
    out = collator([padded])
    assert (labels != -100).sum() == 45
    assert torch.equal(out["labels"][0, :300], labels)
    assert torch.equal(out["input_ids"][0, :300], corrupted)
    assert out["masked_positions"].shape == (1, 90)


def test_examples_of_different_length_are_padded():
    collator = DataCollatorForMaskedLM(TOKENIZER)
    draw = np.random.default_rng(0)
    texts = [[2, *draw.integers(5, VOCAB, size).tolist(), 3] for size in (10, 100, 38)]
    out = collator([{"input_ids": text, "document_ids": [1] * len(text)} for text in texts])
    assert out["input_ids"].shape == (3, 102)
    assert out["masked_positions"].shape == (3, 15)
    assert out["attention_mask"].sum(1).tolist() == [12, 102, 40]
    assert out["document_ids"].tolist() == out["attention_mask"].tolist()
    assert (out["input_ids"][0, 12:] == 0).all()
    # Each row at the rate of its own length, and as if it were alone.
    assert (out["labels"] != -100).sum(1).tolist() == [2, 15, 6]
    for row, text in enumerate(texts):
        alone = collator([{"input_ids": torch.tensor(text)}])
        assert torch.equal(alone["labels"][0], out["labels"][row, : len(text)])
        assert torch.equal(alone["input_ids"][0], out["input_ids"][row, : len(text)])
        assert "attention_mask" not in alone


def test_padding_made_elsewhere_is_kept():
    padded = {"input_ids": [2, 9, 8, 7, 3, 9], "attention_mask": [1, 1, 1, 1, 1, 0]}
    out = DataCollatorForMaskedLM(TOKENIZER, 0.8)([padded])
    assert out["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0]]
    assert out["labels"][0, 5] == -100
    full = DataCollatorForMaskedLM(TOKENIZER, 0.8)([{"input_ids": [2, 9, 3], "attention_mask": [1, 1, 1]}])
    assert "attention_mask" not in full


def test_segments_and_positions_are_padded_and_passed_on():
    collator = DataCollatorForMaskedLM(TOKENIZER, 0.4)
    collator.keyed = True
    examples = [
        {
            "input_ids": [2, 9, 3, 8, 3],
            "token_type_ids": [0, 0, 0, 1, 1],
            "position_ids": [0, 1, 2, 4, 5],
            "text": "a",
        },
        {"input_ids": [2, 9, 3], "token_type_ids": [0, 0, 0], "position_ids": [0, 1, 2]},
    ]
    out = collator([{**example, "text": "of a column that no model reads"} for example in examples])
    assert out["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert out["position_ids"].tolist() == [[0, 1, 2, 4, 5], [0, 1, 2, 0, 0]]
    assert "text" not in out
    assert_equal(out, collator(collator.original(out)))
    model = tiny.model(vocab_size=64).eval()
    plain = {name: values for name, values in out.items() if name not in ("example_id", "epoch", "token_type_ids")}
    encoded = {name: values for name, values in out.items() if name in ("input_ids", "attention_mask", "position_ids")}
    first = model(**encoded, token_type_ids=out["token_type_ids"]).logits
    assert not torch.allclose(first[0], model(**encoded).logits[0], atol=1e-4)
    assert model(**plain, token_type_ids=out["token_type_ids"]).loss != model(**plain).loss


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "rows of tokens, `input_ids`.*nothing to mask"),
        ([{"input_ids": []}], r"shape \(1, 0\).*Leave out examples without text"),
        ({"input_ids": np.zeros((2, 0), int)}, r"shape \(2, 0\).*nothing to mask"),
        ({"input_ids": [[2, 9, 3], [2, 3]]}, "rows of the batch's arrays.*differ in length"),
        ([{"input_ids": [[2, 9, 3]]}], r"`input_ids` of example 0 of the batch has the shape \(1, 3\)"),
        (
            [{"input_ids": [2, 3]}, {"input_ids": [2, 9, 3], "token_type_ids": [0, 0]}],
            "Only some examples of the batch have `token_type_ids`",
        ),
        (
            [{"input_ids": [2, 3], "token_type_ids": [0, 0]}, {"input_ids": [2, 9, 3], "token_type_ids": [0, 0]}],
            r"`token_type_ids` of example 1 of the batch has the shape \(2,\), but must have one number.* 3 tokens",
        ),
        (
            {"input_ids": np.full((2, 4), 9), "attention_mask": np.ones((2, 1, 4, 4))},
            r"`attention_mask` of the batch has the shape \(2, 1, 4, 4\), but must have one number.*\(2, 4\)",
        ),
    ],
)
def test_a_batch_that_cannot_be_masked_says_why(examples, message):
    with pytest.raises(EffptError, match=message):
        DataCollatorForMaskedLM(TOKENIZER)(examples)


def test_an_empty_example_beside_others_is_padding():
    out = DataCollatorForMaskedLM(TOKENIZER)([{"input_ids": []}, {"input_ids": [2, 9, 3]}])
    assert out["attention_mask"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert (out["labels"] != -100).tolist() == [[False] * 3, [False, True, False]]


def test_whole_words_end_with_their_document():
    """Token 40 goes on with a word, but not with one of the document before."""
    collator = DataCollatorForMaskedLM(TOKENIZER, 0.5, whole_word=True)
    ids = np.tile([9, 40, 40, 40], (60, 1))
    whole = {"input_ids": ids, "example_id": np.arange(60)}
    apart = whole | {"document_ids": np.tile([1, 1, 2, 2], (60, 1))}
    starts = [(collator(batch)["labels"] != -100).tolist() for batch in (whole, apart)]
    assert {tuple(row) for row in starts[0]} == {(True, True, False, False)}
    assert {tuple(row) for row in starts[1]} == {(True, True, False, False), (False, False, True, True)}


def test_example_without_id_is_known_by_its_tokens():
    collator = DataCollatorForMaskedLM(TOKENIZER)
    rows = packed_batch(3)["input_ids"]
    rows[1] = rows[0]
    positions = collator({"input_ids": rows})["masked_positions"]
    assert torch.equal(positions[0], positions[1])
    assert not torch.equal(positions[0], positions[2])


@pytest.mark.parametrize(
    "examples", [{"input_ids": np.full((2, 9), 3)}, [{"input_ids": [2, 1, 3]}, {"input_ids": [0]}]]
)
def test_a_batch_without_text_says_so(examples):
    with pytest.raises(
        EffptError, match=r"None of the (18|3) tokens of the batch can be masked, since all are special"
    ):
        DataCollatorForMaskedLM(TOKENIZER)(examples)


def test_padding_that_no_column_tells_is_told_to_the_model():
    """A batch in arrays is read as that of a list, and as one without its padding."""
    collator = DataCollatorForMaskedLM(TOKENIZER)
    text, short = [2, *range(20, 40), 3], [2, *range(45, 57), 3]
    padded = [*short, *[0] * (len(text) - len(short))]
    arrays = collator({"input_ids": np.array([text, padded])})
    assert arrays["attention_mask"].sum(dim=1).tolist() == [22, 14]
    assert_equal(arrays, collator([{"input_ids": text}, {"input_ids": padded}]))
    assert_equal(arrays, collator([{"input_ids": text}, {"input_ids": short}]))
    assert "attention_mask" not in collator({"input_ids": np.array([text])})
