import itertools
import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_effpt.core.errors import EffptError
from hf_effpt.data import corpus_of, train_tokenizer
from hf_effpt.evaluation import blimp as module
from hf_effpt.evaluation.blimp import blimp, sentence_scores
from tests import tiny

NOUNS = ("gardener", "walker", "teacher", "sister", "unbeliever", "dog", "photographer", "neighbour")
VERBS = ("admire", "overestimate", "know", "recognise", "see", "photograph")


def generated_pairs() -> list[tuple[str, str, str, str]]:
    """200 minimal pairs: subject-verb agreement, determiner-noun agreement and reflexives."""
    pairs = []
    for noun, verb, other in itertools.product(NOUNS, VERBS, NOUNS[:3]):
        agreement = (f"The {noun} {verb}s the {other}s.", f"The {noun}s {verb}s the {other}s.")
        determiner = (f"Those {noun}s didn't {verb} this {other}.", f"Those {noun}s didn't {verb} these {other}.")
        reflexive = (f"A few {noun}s {verb} themselves.", f"A few {noun}s {verb} herself.")
        pairs.append((*agreement, "agreement", "morphology"))
        pairs.append((*determiner, "determiner_noun", "morphology"))
        pairs.append((*reflexive, "reflexive", "syntax"))
    return list(dict.fromkeys(pairs))[:200]


def dataset(pairs: list[tuple[str, str, str, str]]) -> Dataset:
    return Dataset.from_dict(dict(zip(module.COLUMNS, map(list, zip(*pairs, strict=True)), strict=True)))


def oracle_pairs() -> Dataset:
    """200 pairs of BLiMP where it is at hand, from all over it, else generated ones."""
    folder = os.environ.get("HF_EFFPT_DATA")
    found = sorted(Path(folder, "blimp").glob("*.parquet")) if folder else []
    if not found:
        return dataset(generated_pairs())
    pairs = Dataset.from_parquet([str(file) for file in found], columns=list(module.COLUMNS))
    return pairs.select(np.linspace(0, len(pairs) - 1, 200).astype(int))


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def subwords(request) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer that has seen so little text that most words are several pieces."""
    texts = [" ".join(pair[:2]) for pair in generated_pairs()[:40]]
    return train_tokenizer(corpus_of(texts), vocab_size=384, kind=request.param, lowercase=True)


def bert(vocabulary: int, **changes) -> BertForMaskedLM:
    """A BERT whose weights are large enough for every token to matter."""
    model = BertForMaskedLM(BertConfig(**{**tiny.SHAPE, "vocab_size": vocabulary, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return model.eval()


def unigram(log_probabilities: torch.Tensor) -> BertForMaskedLM:
    """A model that gives every token its log-probability whatever stands around it."""
    model = bert(len(log_probabilities))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().bias.copy_(log_probabilities)
    return model


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def test_equal_to_minicons(subwords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from minicons.scorer import MaskedLMScorer
    pairs = oracle_pairs()
    sentences = [*pairs["sentence_good"], *pairs["sentence_bad"]]
    model = bert(len(subwords), max_position_embeddings=160)
    oracle = MaskedLMScorer(model, "cpu", tokenizer=subwords, PLL_metric="within_word_l2r")
    expected = []
    for first in range(0, len(sentences), 50):
        # Encoded here: its own way is a method that tokenizers no longer have.
        encoded = subwords(sentences[first : first + 50], padding=True, return_tensors="pt")
        expected += oracle.sequence_score(
            encoded, reduction=lambda part: part.sum().item(), PLL_metric="within_word_l2r"
        )
    scores, cut = sentence_scores(model, subwords, sentences)
    np.testing.assert_allclose(scores, expected, atol=1e-3, rtol=0)
    assert not cut.any()
    pieces = [encoding.word_ids for encoding in subwords(sentences).encodings]
    assert any(len(set(ids)) < len(ids) - 1 for ids in pieces)  # there are words of several pieces


def test_masks_a_token_and_those_to_its_right_in_its_word(subwords):
    model = bert(len(subwords))
    sentence = "Those unbelievers see."
    encoded = subwords(sentence)
    ids, of = torch.tensor(encoded["input_ids"]), encoded.word_ids()
    expected = 0.0
    for position, word in enumerate(of):
        if word is not None:
            masked = ids.clone()
            masked[[at for at in range(position, len(of)) if of[at] == word]] = subwords.mask_token_id
            expected += model(masked[None]).logits[0, position].log_softmax(0)[ids[position]].item()
    assert sentence_scores(model, subwords, [sentence])[0] == pytest.approx([expected], abs=1e-4)


def test_scores_of_a_model_that_is_known():
    odds = torch.linspace(-3, 3, tiny.VOCAB).softmax(0).log()
    scores, _ = sentence_scores(unigram(odds), tiny.tokenizer(), [words(7, 3), words(100), words(3, 7)])
    expected = [odds[12] + odds[8], odds[105], odds[12] + odds[8]]
    assert scores == pytest.approx([value.item() for value in expected], abs=1e-5)
    result = blimp(
        unigram(odds),
        tiny.tokenizer(),
        dataset(
            [
                (words(9, 2), words(1, 9), "a", "x"),  # 2 is likelier than 1
                (words(9, 2), words(9, 3), "a", "x"),
                (words(5, 9), words(4, 9), "a", "x"),
                (words(5, 9), words(5, 9), "b", "y"),
                (words(8), words(7), "c", "y"),
            ]
        ),
    )
    assert result["by_paradigm"] == {
        "a": {"accuracy": pytest.approx(2 / 3), "pairs": 3, "ties": 0, "field": "x"},
        "b": {"accuracy": 0.5, "pairs": 1, "ties": 1, "field": "y"},
        "c": {"accuracy": 1.0, "pairs": 1, "ties": 0, "field": "y"},
    }
    assert result["macro"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # over pairs it would be .7
    assert result["by_field"] == {"x": pytest.approx(2 / 3), "y": 0.75}
    assert result["standard_error"] == pytest.approx(math.sqrt(1 / 9 + 1 / 4 + 1 / 4) / 3)
    assert (result["metric"], result["pairs"], result["ties"], result["truncated"]) == ("pll_word_l2r", 5, 1, 0)
    assert json.loads(json.dumps(result)) == result


def test_constant_scores_are_chance():
    pairs = dataset([(words(i, i + 1), words(i + 2, i), str(i % 3), "x") for i in range(30)])
    for model in (unigram(torch.zeros(tiny.VOCAB)), discriminator(constant=True)):
        result = blimp(model, tiny.tokenizer(), pairs)
        assert result["macro"] == 0.5
        assert result["ties"] == 30
        assert result["standard_error"] == 0.0


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_sentences_of_the_same_tokens_tie_whatever_the_batch(subwords, batch_size):
    texts = [pair[0] for pair in generated_pairs()[:12]]
    pairs = dataset([(text, text.upper(), "same", "x") for text in texts])
    assert blimp(bert(len(subwords)), subwords, pairs, batch_size=batch_size)["ties"] == 12


def test_the_batch_size_changes_nothing(subwords):
    model, texts = bert(len(subwords)), [pair[0] for pair in generated_pairs()[:12]]
    whole, _ = sentence_scores(model, subwords, texts)
    for batch_size in (1, 10):
        np.testing.assert_allclose(
            sentence_scores(model, subwords, texts, batch_size=batch_size)[0], whole, atol=1e-3, rtol=0
        )


def test_the_head_sees_masked_positions_only():
    model, seen = bert(tiny.VOCAB), []
    model.cls.register_forward_hook(lambda head, args, output: seen.append(output.shape))
    texts = [words(1, 2, 3), words(4, 5, 6), words(1, 2, 3), words(9)]
    sentence_scores(model, tiny.tokenizer(), texts, batch_size=4)
    assert seen == [(1, 1, tiny.VOCAB), (4, 1, tiny.VOCAB), (2, 1, tiny.VOCAB)]  # equal sentences once


def test_first_pairs_of_each_paradigm():
    uids = ["b", "a", "b", "b", "a", "c"]
    assert module._first_of_each(uids, 2).tolist() == [0, 1, 2, 4, 5]
    assert module._first_of_each(uids, None).tolist() == [0, 1, 2, 3, 4, 5]
    pairs = dataset([(words(i), words(i + 1), uid, "x") for i, uid in enumerate(uids)])
    model = bert(tiny.VOCAB)
    two = blimp(model, tiny.tokenizer(), pairs, pairs_per_paradigm=2)
    assert two == blimp(model, tiny.tokenizer(), pairs.select([0, 1, 2, 4, 5]))
    assert [part["pairs"] for part in two["by_paradigm"].values()] == [2, 2, 1]


def test_too_long_sentences_are_cut_and_counted():
    long = words(*range(40))
    pairs = dataset([(long, words(1), "a", "x"), (words(1), words(2), "a", "x"), (words(3), long, "a", "x")])
    result = blimp(bert(tiny.VOCAB), tiny.tokenizer(), pairs)  # 32 positions
    assert (result["truncated"], result["pairs"]) == (2, 3)
    model = bert(tiny.VOCAB)
    scores, cut = sentence_scores(model, tiny.tokenizer(), [long, words(*range(30)), words(*range(31))])
    assert scores[0] == scores[1] == scores[2]
    assert cut.tolist() == [True, False, True]


def test_a_roberta_is_given_no_more_than_it_reads():
    shape = {**tiny.SHAPE, "max_position_embeddings": 20, "pad_token_id": 0}
    model = RobertaForMaskedLM(RobertaConfig(**shape)).eval()
    scores, cut = sentence_scores(model, tiny.tokenizer(), [words(*range(1, 30)), words(*range(1, 18))])
    assert cut.tolist() == [True, False]  # 19 tokens are read, 17 words and two special ones
    assert scores[0] == scores[1]


def test_a_training_model_and_its_export_score_alike():
    model = tiny.model({"layerdrop": {"p": 0.5}}, hidden_dropout_prob=0.1).train()
    texts = [words(1, 2, 3), words(5, 6)]
    own, exported = (sentence_scores(one, tiny.tokenizer(), texts)[0] for one in (model, model.export()))
    np.testing.assert_allclose(own, exported, atol=1e-4, rtol=0)
    assert model.training


def test_leaves_model_and_tokenizer_as_they_were():
    model, tokenizer = bert(tiny.VOCAB).train(), tiny.tokenizer()
    before = [(name, id(part), part.training) for name, part in model.named_modules()]
    backend = tokenizer.backend_tokenizer.to_str()
    sentence_scores(model, tokenizer, [words(1, 2)])
    assert [(name, id(part), part.training) for name, part in model.named_modules()] == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert tokenizer.backend_tokenizer.to_str() == backend


def discriminator(constant: bool = False) -> ElectraForPreTraining:
    model = ElectraForPreTraining(ElectraConfig(embedding_size=16, **tiny.SHAPE))
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.0 if constant else 0.2)
    return model.eval()


@torch.no_grad()
def test_a_discriminator_by_hand():
    model = discriminator()
    texts = [words(1, 2, 3), words(7, 5), words(3, 2, 1)]
    scores, _ = sentence_scores(model, tiny.tokenizer(), texts, batch_size=1)
    for text, score in zip(texts, scores, strict=True):
        replaced = torch.sigmoid(model(torch.tensor([tiny.tokenizer()(text)["input_ids"]])).logits[0, 1:-1])
        assert score == pytest.approx(sum(math.log(1 - p) for p in replaced.tolist()), abs=1e-5)
    result = blimp(model, tiny.tokenizer(), dataset([(texts[0], texts[2], "a", "x")]))
    assert result["metric"] == "discriminator"
    assert result["macro"] == float(scores[0] > scores[2])


PAIRS = dataset([(words(1), words(2), "a", "x")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": PAIRS.remove_columns(["UID", "field"])}, "not UID, field.*rename_column"),
        ({"pairs": PAIRS.select([])}, "no pairs"),
        ({"pairs": dataset([(words(1), None, "a", "x")])}, "`sentence_bad` holds None"),
        ({"pairs": dataset([(words(1), words(2), 3, "x")])}, "`UID` holds 3"),
        ({"pairs_per_paradigm": 0}, "pairs_per_paradigm=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"model": BertForSequenceClassification(BertConfig(**tiny.SHAPE))}, "BertForSequenceClassification` neither"),
        ({"model": bert(tiny.VOCAB - 1)}, "128 tokens but the model only 127"),
        ({"model": unigram(torch.full((tiny.VOCAB,), math.nan))}, "2 of 2 sentences.*diverged"),
    ],
)
def test_bad_input_is_refused(changes, message):
    given = {"model": bert(tiny.VOCAB), "tokenizer": tiny.tokenizer(), "pairs": PAIRS, **changes}
    with pytest.raises(EffptError, match=message):
        blimp(given.pop("model"), given.pop("tokenizer"), given.pop("pairs"), **given)


def test_a_tokenizer_that_will_not_do_is_refused(monkeypatch):
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer, unk_token="[UNK]")
    with pytest.raises(EffptError, match="no mask token"):
        blimp(bert(tiny.VOCAB), bare, PAIRS)
    assert blimp(discriminator(), bare, PAIRS)["pairs"] == 1  # which masks nothing
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(EffptError, match="without a fast"):
        blimp(bert(tiny.VOCAB), tiny.tokenizer(), PAIRS)
