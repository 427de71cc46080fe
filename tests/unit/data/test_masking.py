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
from tests import tiny

VOCAB = 60
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
ROLES = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 5..29 begin a word, 30..59 go on with one."""
    words = {f"w{index}" if index < 30 else f"##c{index}": index for index in range(5, VOCAB)}
    backend = Tokenizer(models.WordPiece(SPECIAL | words, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES)


TOKENIZER = small_tokenizer()
# Rows of any tokens, special ones too.
BATCHES = st.tuples(st.integers(1, 8), st.integers(8, 40), st.integers(0, 10**6))
COLLATORS = st.sampled_from(
    [
        DataCollatorForMaskedLM(TOKENIZER, rate, whole_word, seed)
        for rate in (0.05, 0.15, 0.4, 0.8)
        for whole_word in (False, True)
        for seed in (0, 3)
    ]
)


def make_batch(size: int, length: int, seed: int, epoch: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    input_ids = draw.integers(5, VOCAB, (size, length))
    # From none to nearly all of a row is special.
    input_ids[draw.random((size, length)) < draw.choice([0, 0.05, 0.9], (size, 1))] = draw.integers(0, 5)
    input_ids[0, -1] = 9  # there is something to mask
    return {"input_ids": input_ids, "example_id": draw.integers(0, 10**6, size), "epoch": np.full(size, epoch)}


def packed_batch(size: int, length: int = 128) -> dict[str, np.ndarray]:
    """Rows as packing makes them, without padding."""
    draw = np.random.default_rng(0)
    input_ids = draw.integers(5, VOCAB, (size, length))
    input_ids[:, 0], input_ids[:, -1] = 2, 3
    return {"input_ids": input_ids, "example_id": np.arange(size), "epoch": np.zeros(size, int)}


def row_of(batch: dict, row: int) -> dict:
    """One row of a batch, without an attention mask if it has no padding."""
    own = {name: tensor[row : row + 1] for name, tensor in batch.items()}
    if own.get("attention_mask", torch.zeros(1)).all():
        del own["attention_mask"]
    return own


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


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
@given(COLLATORS, BATCHES)
def test_equal_rates_change_nothing(collator, shape):
    batch = make_batch(*shape)
    plain = collator(batch)
    for rate in (1.0, 0.3):
        assert_equal(plain, collator(batch, token_rates=np.full(VOCAB, rate)))
    more = np.append(np.ones(VOCAB), 5.0)  # of a row of the model's table that no token has
    assert_equal(plain, collator(batch, token_rates=more))


@settings(deadline=None)
@given(COLLATORS, BATCHES)
def test_rates_change_neither_counts_nor_what_masks_depend_on(collator, shape):
    batch, rates = make_batch(*shape), np.random.default_rng(3).uniform(0.1, 10, VOCAB)
    plain, out = collator(batch), collator(batch, token_rates=rates)
    assert torch.equal((plain["labels"] != -100).sum(1), (out["labels"] != -100).sum(1))
    assert (out["masked_positions"].diff(dim=1) > 0).all()
    labelled = out["labels"] != -100
    assert (out["labels"][labelled] == torch.from_numpy(batch["input_ids"])[labelled]).all()
    assert (out["labels"][labelled] >= 5).all()
    assert_equal(out, collator(batch, token_rates=2 * rates))
    for row in range(shape[0]):
        alone = collator({name: values[row : row + 1] for name, values in batch.items()}, token_rates=rates)
        assert_equal(row_of(out, row), alone)


def test_tokens_are_drawn_without_replacement_in_the_proportions_of_their_rates():
    number = 20_000
    rows = np.tile([2, 5, 6, 7, 3], (number, 1))
    rates = np.ones(VOCAB)
    rates[[5, 6, 7]] = 4, 2, 1
    batch = {"input_ids": rows, "example_id": np.arange(number)}
    one = (DataCollatorForMaskedLM(TOKENIZER, 0.2)(batch, token_rates=rates)["labels"] != -100).double().mean(0)
    assert one.tolist() == pytest.approx([0, 4 / 7, 2 / 7, 1 / 7, 0], abs=0.012)
    two = (DataCollatorForMaskedLM(TOKENIZER, 0.4)(batch, token_rates=rates)["labels"] != -100).double().mean(0)
    # The one that is left over: each order of the others, the second drawn from what the first leaves.
    left = [2 / 7 * 1 / 5 + 1 / 7 * 2 / 6, 4 / 7 * 1 / 3 + 1 / 7 * 4 / 6, 4 / 7 * 2 / 3 + 2 / 7 * 4 / 5]
    assert two[1:4].tolist() == pytest.approx([1 - share for share in left], abs=0.012)


def test_what_a_token_becomes_does_not_depend_on_its_rate():
    batch, rates = packed_batch(1000), np.ones(VOCAB)
    rates[5:30] = 20.0
    out = DataCollatorForMaskedLM(TOKENIZER)(batch, token_rates=rates)
    labelled = out["labels"] != -100
    new, old = out["input_ids"][labelled], out["labels"][labelled]
    assert (old < 30).double().mean() > 0.9
    assert (new == 4).double().mean() == pytest.approx(0.8, abs=0.01)
    assert ((new != 4) & (new != old)).double().mean() == pytest.approx(0.1, abs=0.01)


def test_a_whole_word_has_the_rate_of_its_first_token():
    batch = packed_batch(200)
    ids = batch["input_ids"]
    ids[ids >= 30] = 41
    ids[:, 1:6] = 8, 40, 40, 40, 9
    ids[:100, 1] = 40  # these rows begin in the middle of a word
    collator = DataCollatorForMaskedLM(TOKENIZER, whole_word=True)
    rates = np.ones(VOCAB)
    rates[[*range(5), 41]] = 1e6  # of no token that is the first of a word
    assert_equal(collator(batch), collator(batch, token_rates=rates))
    rates[40] = 1e6
    masked = (collator(batch, token_rates=rates)["labels"] != -100)[:, 1:5]
    assert masked[:100].all()
    assert masked[100:].double().mean() < 0.3


@pytest.mark.parametrize(
    "rates",
    [np.ones(0), np.ones(VOCAB - 1), np.zeros(VOCAB), np.full(VOCAB, np.inf), -np.ones(VOCAB), np.full(VOCAB, np.nan)],
)
def test_impossible_token_rates(rates):
    with pytest.raises(EffptError, match="must be one finite number above 0 for each of the tokenizer's 60 tokens"):
        DataCollatorForMaskedLM(TOKENIZER)(packed_batch(1), token_rates=rates)


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
