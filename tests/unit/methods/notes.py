"""A text of words of one to three sub-words, some of them rare, and models that take notes of those."""

from types import SimpleNamespace

import numpy as np
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.data.words import WordEdges
from hf_effpt.methods.tnf.lookup import entries_of, words_of
from tests import tiny

PAD, UNK, CLS, SEP, MASK = range(5)
STARTS, CONTINUATIONS = range(5, 70), range(70, tiny.VOCAB)
RARE = ((60, 100, 101), (61,), (62, 100), (63, 101, 100))


def batches(rows, number, documents=None):
    """Batches of rows as a run's text has them."""
    columns = {"input_ids": np.asarray(rows, np.int64)}
    if documents is not None:
        columns["document_ids"] = np.asarray(documents, np.int64)
    parts = zip(*[np.array_split(values, number) for values in columns.values()], strict=True)
    return (dict(zip(columns, part, strict=True)) for part in parts)


def text(rows, vocabulary=tiny.VOCAB, documents=None):
    """What `Method.prepare` is given."""
    return SimpleNamespace(
        batches=lambda: batches(rows, 3, documents),
        words=WordEdges(np.arange(vocabulary) >= CONTINUATIONS[0], np.zeros(vocabulary, bool)),
        specials=[PAD, UNK, CLS, SEP, MASK],
        mask=MASK,
        pad=PAD,
        seed=3,
    )


def row(*words, length=tiny.LENGTH):
    """One row of these words, filled up with frequent ones."""
    ids = [token for word in words for token in word]
    return [CLS, *ids, *(6 + index % 3 for index in range(length - 2 - len(ids))), SEP]


def rows():
    """Each rare word occurs 4 times, with common ones around it."""
    common = [(6,), (7, 80), (8,)]
    return [row(common[number % 3], word, common[(number + 1) % 3]) for number in range(4) for word in RARE]


def model(methods=None, config=None, **settings):
    """A training model that has counted `rows()`; its dictionary holds `RARE`."""
    settings = {"min_count": 4, "max_count": 4, **settings}
    torch.manual_seed(3)
    made = tiny.model({"tnf": settings, **(methods or {})}, **(config or {}))
    prepare(made)
    return made


def prepare(made):
    tnf = method(made)
    tnf.prepare(made.backbone, context(text(rows())))
    return tnf


def context(text):
    """The context in which a method prepares a model for this text."""
    return RunContext(0, 0.0, text.seed, open_text=lambda: text)


def method(made):
    return next(method for method in made.methods if method.name == "tnf")


def entry(made, word):
    """The entry of a word, found with a row of its own."""
    with_word = torch.tensor([row((6,), word)])
    notes = made.backbone.notes
    return int(looked_up(notes, with_word)[0, 2])


def looked_up(notes, ids):
    return entries_of(ids, words_of(ids, notes.kinds), notes.keys)


def batch(*rows_of_words):
    return torch.tensor([row(*words) for words in rows_of_words])


def written(rank, world):
    """The notes that a process has after three steps of its share of the rows."""
    learning = model(config={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}).train()
    every = torch.tensor(rows())
    for step in range(3):
        batch = every[4 * step : 4 * step + 4]
        learning(batch[rank * 4 // world : (rank + 1) * 4 // world])
    return learning.bert.notes.vectors
