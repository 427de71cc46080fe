"""Which tokens are masked, what they become, and what that depends on."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.data import DataCollatorForMaskedLM, PackedRows, corpus_of, pack
from tests.unit.data.to_mask import (
    BATCHES,
    COLLATORS,
    ROLES,
    SPECIAL,
    TOKENIZER,
    VOCAB,
    assert_equal,
    make_batch,
    packed_batch,
    row_of,
)


@settings(deadline=None)
@given(COLLATORS, BATCHES)
def test_batch_is_well_formed(collator, shape):
    batch = make_batch(*shape)
    original = torch.from_numpy(batch["input_ids"].copy())
    out = collator(batch)
    size, length = original.shape
    count = max(1, round(collator.mlm_probability * length))
    assert out["masked_positions"].shape == (size, count)
    assert {tensor.dtype for tensor in out.values()} == {torch.int64}
    # Ascending and so distinct.
    assert (out["masked_positions"].diff(dim=1) > 0).all()
    labelled = out["labels"] != -100
    assert (out["labels"][labelled] == original[labelled]).all()
    assert (original[labelled] >= 5).all(), "a special token was masked"
    assert (out["input_ids"][~labelled] == original[~labelled]).all()
    named = torch.zeros_like(labelled).scatter(1, out["masked_positions"], True)
    assert (labelled <= named).all()
    changed = out["input_ids"][labelled]
    assert ((changed == 4) | (changed >= 5)).all()
    tokens, maskable = (original != 0).sum(1).tolist(), (original >= 5).sum(1).tolist()
    for masked, real, available in zip(labelled.sum(1).tolist(), tokens, maskable, strict=True):
        assert masked == min(available, max(1, round(collator.mlm_probability * real)))
    assert torch.equal(torch.from_numpy(batch["input_ids"]), original), "the input was changed"


@settings(deadline=None)
@given(COLLATORS, BATCHES, st.integers(0, 3))
def test_masks_depend_on_the_example_alone(collator, shape, epoch):
    batch = make_batch(*shape, epoch=epoch)
    whole = collator(batch)
    worker = pickle.loads(pickle.dumps(collator))
    order = np.random.default_rng(1).permutation(len(batch["epoch"]))
    shuffled = worker({name: values[order] for name, values in batch.items()})
    assert_equal({name: tensor[order] for name, tensor in whole.items()}, shuffled)
    for row in range(len(order)):
        alone = worker({name: values[row : row + 1] for name, values in batch.items()})
        assert_equal(row_of(whole, row), alone)


def test_masks_change_with_seed_epoch_and_id():
    batch = packed_batch(8)
    base = DataCollatorForMaskedLM(TOKENIZER)(batch)["masked_positions"]
    others = [
        DataCollatorForMaskedLM(TOKENIZER, seed=1)(batch),
        DataCollatorForMaskedLM(TOKENIZER)({**batch, "epoch": batch["epoch"] + 1}),
        DataCollatorForMaskedLM(TOKENIZER)({**batch, "example_id": batch["example_id"] + 8}),
    ]
    for other in others:
        assert (other["masked_positions"] != base).any(dim=1).all()


@pytest.mark.parametrize("whole_word", [False, True])
def test_proportions(whole_word):
    batch = packed_batch(2000)
    out = DataCollatorForMaskedLM(TOKENIZER, whole_word=whole_word)(batch)
    labelled = out["labels"] != -100
    assert (labelled.sum(1) == 19).all()
    new, old = out["input_ids"][labelled], out["labels"][labelled]
    total = len(old)
    assert (new == 4).sum() / total == pytest.approx(0.8, abs=0.01)
    # One in 55 random tokens is the old one.
    assert (new == old).sum() / total == pytest.approx(0.1 + 0.1 / 55, abs=0.008)
    drawn = torch.bincount(new[(new != 4) & (new != old)], minlength=VOCAB)
    assert (drawn[:5] == 0).all()
    assert drawn[5:].min() > 0.4 * drawn[5:].float().mean()
    # Every position that can be masked is masked about as often as any other.
    often = labelled.float().mean(0)[1:-1]
    assert often.mean() == pytest.approx(19 / 126, abs=1e-6)
    assert often.min() > 0.11
    assert often.max() < 0.19


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.15, 0.4]))
def test_whole_words_are_masked_whole(seed, probability):
    draw = np.random.default_rng(seed)
    # Half of the tokens go on with a word, so words of several tokens abound.
    input_ids = draw.integers(5, VOCAB, (4, 48))
    input_ids[:, 0], input_ids[:, -1], input_ids[0, 20] = 2, 3, 3
    out = DataCollatorForMaskedLM(TOKENIZER, probability, whole_word=True)({"input_ids": input_ids})
    masked = (out["labels"] != -100).numpy()
    for row in range(4):
        words: list[list[int]] = []
        for position, token in enumerate(input_ids[row]):
            if token < 5:
                words.append([])
            elif token >= 30 and words and words[-1]:
                words[-1].append(position)
            else:
                words.append([position])
        parts = [masked[row, word] for word in words if word]
        # One word at most is cut to make the count exact, and then its beginning is masked.
        cut = [part for part in parts if part.any() and not part.all()]
        assert len(cut) <= 1
        for part in cut:
            assert (np.diff(part.astype(int)) <= 0).all()
        assert masked[row].sum() == round(probability * 48)


def test_whole_words_of_byte_level_bpe(byte_tokenizer, documents):
    input_ids = np.array([byte_tokenizer(documents[0])["input_ids"][:64]])
    out = DataCollatorForMaskedLM(byte_tokenizer, 0.3, whole_word=True)({"input_ids": input_ids})
    masked = (out["labels"][0] != -100).numpy()
    tokens = byte_tokenizer.convert_ids_to_tokens(input_ids[0])
    starts = np.array([token.startswith(("Ġ", "[")) for token in tokens])
    words = np.split(masked, np.flatnonzero(starts)[1:])
    assert max(map(len, words)) > 1
    assert sum(word.any() and not word.all() for word in words) <= 1


def test_list_of_examples_is_the_array(tokenizer, documents):
    train = pack(corpus_of(documents), tokenizer, isolate_documents=True, sequence_length=32, validation=None)["train"]
    numbers = np.array([3, 0, 7])
    arrays = PackedRows(train).rows(numbers) | {"example_id": numbers, "epoch": np.full(3, 2)}
    examples = [train[int(number)] | {"example_id": int(number), "epoch": 2} for number in numbers]
    collator = DataCollatorForMaskedLM(tokenizer, whole_word=True)
    assert set(collator(arrays)) == {"input_ids", "labels", "masked_positions", "document_ids"}
    assert_equal(collator(arrays), collator(examples))


def test_row_of_a_run_without_text_is_left_alone():
    out = DataCollatorForMaskedLM(TOKENIZER)({"input_ids": np.full((1, 16), 3), "example_id": np.array([4])})
    assert (out["labels"] == -100).all()
    assert (out["input_ids"] == 3).all()
    assert out["masked_positions"].shape == (1, 2)


@pytest.mark.parametrize("probability", [0, 1, -0.1, 15])
def test_impossible_rate(probability):
    with pytest.raises(EffptError, match=r"mlm_probability=.* must be a share"):
        DataCollatorForMaskedLM(TOKENIZER, probability)


def test_tokenizer_must_fit():
    vocab = {"[PAD]": 0, "a": 1}
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="a")), pad_token="[PAD]"
    )
    with pytest.raises(EffptError, match="has no cls_token, sep_token, mask_token"):
        DataCollatorForMaskedLM(bare)
    wordless = Tokenizer(models.BPE(SPECIAL | {"a": 5}, merges=[], unk_token="[UNK]"))
    with pytest.raises(EffptError, match=r"does not mark where words begin.* or set whole_word to False"):
        DataCollatorForMaskedLM(PreTrainedTokenizerFast(tokenizer_object=wordless, **ROLES), whole_word=True)
    with pytest.raises(EffptError, match=r"token ids 5\.\.60, but the tokenizer's vocabulary has 60"):
        DataCollatorForMaskedLM(TOKENIZER)({"input_ids": np.array([[5, VOCAB]])})


@settings(deadline=None)
@given(COLLATORS, BATCHES, st.integers(0, 3), st.booleans())
def test_a_keyed_batch_says_what_it_was_made_of(collator, shape, epoch, named):
    batch = make_batch(*shape, epoch=epoch)
    batch["document_ids"] = np.ones_like(batch["input_ids"])
    if not named:
        del batch["example_id"]
    plain = collator(batch)
    collator.keyed = True
    keyed = collator(batch)
    collator.keyed = False
    assert keyed.keys() - plain.keys() == {"example_id", "epoch"}
    assert_equal(plain, {name: keyed[name] for name in plain})
    assert keyed["example_id"].dtype == keyed["epoch"].dtype == torch.int64
    assert keyed["epoch"].tolist() == batch["epoch"].tolist()
    if named:
        assert keyed["example_id"].tolist() == batch["example_id"].tolist()
    original = collator.original(keyed)
    assert np.array_equal(original["input_ids"], batch["input_ids"])
    assert_equal(plain, collator(original))


def test_padded_examples_are_masked_anew_as_they_were():
    collator = DataCollatorForMaskedLM(TOKENIZER)
    collator.keyed = True
    draw = np.random.default_rng(0)
    texts = [[2, *draw.integers(5, VOCAB, size).tolist(), 3] for size in (10, 100, 38)]
    out = collator([{"input_ids": text, "example_id": row} for row, text in enumerate(texts)])
    assert out["epoch"].tolist() == [0, 0, 0]
    assert_equal(out, collator(collator.original(out)))


def test_a_batch_without_keys_cannot_be_masked_anew():
    collator = DataCollatorForMaskedLM(TOKENIZER)
    with pytest.raises(EffptError, match=r"has input_ids, labels, masked_positions.*`keyed = True`"):
        collator.original(collator(packed_batch(2)))
