"""Batches of random tokens to be masked, and collators that mask them."""

import numpy as np
import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_effpt.data import DataCollatorForMaskedLM

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
