import random

import pytest

from hf_effpt.data import corpus_of, train_tokenizer


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """60 made-up documents of 20 to 400 words out of 300."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=draw.randint(20, 400))) + "." for _ in range(60)]


@pytest.fixture(scope="session")
def tokenizer(documents):
    return train_tokenizer(corpus_of(documents), vocab_size=320)


@pytest.fixture(scope="session")
def byte_tokenizer(documents):
    return train_tokenizer(corpus_of(documents), vocab_size=512, kind="bpe")
