import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_effpt.core.errors import EffptError
from hf_effpt.data import Corpus, PackedRows, corpus_of, facts, long_documents, open_corpus, pack


def numbered(name, number):
    return corpus_of([f"{name} {index}" for index in range(number)], name=name)


def test_a_list_of_sources_is_read_one_after_another(tmp_path):
    (tmp_path / "b.txt").write_text("b one\n\nb two")
    (tmp_path / "c.jsonl").write_text('{"text": "c"}')
    corpus = open_corpus([numbered("a", 2), str(tmp_path / "b.txt"), {"path": tmp_path / "c.jsonl"}])
    assert list(corpus.texts()) == ["a 0", "a 1", "b one", "b two", "c"]
    assert corpus.name == f"a + {tmp_path}/b.txt + {tmp_path}/c.jsonl"
    assert [one["documents"] for one in corpus.sources] == [2, 2, 1]
    assert corpus.files == (tmp_path / "b.txt", tmp_path / "c.jsonl")
    assert corpus.documents == "blank_lines"
    assert corpus.num_bytes == 6 + 12 + 13
    turned = open_corpus([str(tmp_path / "b.txt"), numbered("a", 2)])
    assert turned.fingerprint != open_corpus([numbered("a", 2), str(tmp_path / "b.txt")]).fingerprint


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0.05, 0.75), (1, 1e-3)])
def test_documents_are_drawn_in_proportion_to_weights(weights):
    corpora = [numbered(name, 1000) for name in "abc"[: len(weights)]]
    mixture = [{"path": one, "weight": weight} for one, weight in zip(corpora, weights, strict=True)]
    corpus = open_corpus(mixture)
    texts = list(corpus.texts())
    shares = np.array(weights) / sum(weights)
    for number in (20, 100, len(texts)):  # at any place
        counts = Counter(text[0] for text in texts[:number])
        assert np.abs([counts[name] - share * number for name, share in zip("abc", shares)]).max() <= 1  # noqa: B905
    # In their own order, none twice, until the first source has no more.
    assert max(Counter(text[0] for text in texts).values()) == 1000
    for name in "abc"[: len(weights)]:
        own = [text for text in texts if text.startswith(name)]
        assert own == [f"{name} {index}" for index in range(len(own))]
    assert [one["documents"] for one in corpus.sources] == [
        sum(text[0] == one.name for text in texts) for one in corpora
    ]
    assert [one["weight"] for one in corpus.sources] == pytest.approx(shares.tolist())
    assert list(corpus.texts()) == texts
    assert corpus.fingerprint == open_corpus(mixture).fingerprint
    assert open_corpus([{**mixture[0], "weight": 7}, *mixture[1:]]).fingerprint != corpus.fingerprint


def test_long_documents_are_drawn_whole(monkeypatch):
    monkeypatch.setattr(long_documents, "PART_CHARACTERS", 10)
    long = [f"{number} many words in a long document" for number in range(4)]
    corpus = open_corpus([{"path": corpus_of(long), "weight": 1}, {"path": numbered("b", 4), "weight": 1}])
    assert list(corpus.texts()) == [text for pair in zip(long, [f"b {index}" for index in range(4)]) for text in pair]  # noqa: B905


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "must hold at least one source"),
        ([{"path": "a", "weight": 1}, "b"], "give all of them a `weight` or none"),
        ([{"path": "a", "weight": 0}], "Source 1 .* its `weight`, a number above 0"),
        (["a", {"path": "a", "weight": "much"}], "Source 2 .*'much'"),
        ([{"path": "a", "share": 1}], "Source 1 .* must be a source, or a mapping"),
        ([{"weight": 1}], "Source 1 .* its `path`"),
        ([["a"], None], "Source 2"),
    ],
)
def test_impossible_mixtures(dataset, message):
    with pytest.raises(EffptError, match=message):
        open_corpus(dataset)


def test_facts_tell_what_was_drawn(tokenizer, documents, tmp_path):
    mixture = [
        {"path": corpus_of(documents[:40], name="most"), "weight": 3},
        {"path": corpus_of(documents[40:], name="few"), "weight": 1},
    ]
    for _ in range(2):  # the second time from the cache
        packed = pack(mixture, tokenizer, sequence_length=16, cache_dir=tmp_path)
        assert facts(packed["train"])["dataset"] == "most + few"
        assert facts(packed["train"])["sources"] == [
            {"dataset": "most", "documents": 40, "weight": 0.75},
            {"dataset": "few", "documents": 13, "weight": 0.25},
        ]
        assert "sources" not in facts(packed["validation"])
    with pytest.raises(EffptError, match="both have the same contents"):
        pack(mixture, tokenizer, validation=open_corpus(mixture))


def test_datasets_in_python_are_read_as_their_documents(tokenizer, documents):
    def rows(source, **settings):
        packed = pack(source, tokenizer, sequence_length=16, **settings)
        read = PackedRows(packed["train"])
        return read.rows(np.arange(len(read)))["input_ids"].tolist(), facts(packed["train"])["fingerprint"]

    data = Dataset.from_dict({"text": documents, "id": range(60)})
    expected = rows(corpus_of(documents))
    assert rows(data) == rows(data.select(range(60))) == expected
    assert rows(data.to_iterable_dataset(num_shards=4)) == expected
    assert rows(IterableDataset.from_generator(lambda: ({"text": text} for text in documents))) == expected
    assert rows(DatasetDict(train=data, test=data.select([1]))) == expected
    assert rows([data]) != expected  # by its fingerprint: a list counts what it draws
    assert rows([data])[0] == expected[0]
    with pytest.raises(EffptError, match="both have the same contents"):
        pack(data, tokenizer, validation=data.select(range(60)))
    with pytest.raises(EffptError, match=r"a DatasetDict has no split 'train', only \['test'\]"):
        open_corpus(DatasetDict(test=data))
    with pytest.raises(EffptError, match="the column 'id' holds int64"):
        open_corpus(data, text_column="id")
    other = pack(data.select(range(50)), tokenizer, validation=data.select(range(50, 60)))
    assert facts(other["validation"])["documents"] == 10


def test_a_corpus_is_opened_as_it_is():
    corpus = Corpus("own", lambda: iter(["a"]), lambda: "f")
    assert open_corpus(corpus) is corpus


def test_a_mixture_in_a_recipe(tmp_path):
    from hf_effpt import Recipe

    mixture = [{"path": "a/", "weight": 3}, {"path": "b/", "weight": 0.5}]
    sections = {"data": {"dataset": mixture}, "training": {"output_dir": str(tmp_path), "budget": "1steps"}}
    recipe = Recipe.load(sections)
    assert recipe.data.dataset == mixture
    assert Recipe.load(recipe.resolved()) == recipe
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml").data.dataset == mixture
    flags = ["--data.dataset", json.dumps(["c", "d"])]
    assert Recipe.load(sections, flags).data.dataset == ["c", "d"]
    assert Recipe.load(sections, ["--data.dataset", "1"]).data.dataset == "1"
    with pytest.raises(EffptError, match="a number above 0"):
        Recipe.load({**sections, "data": {"dataset": [{"path": "a", "weight": -1}]}})


def test_a_source_that_is_named_twice_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(EffptError, match=r"Several sources of the dataset read .*a\.txt, whose documents could"):
        open_corpus([str(path), {"path": str(tmp_path / "link" / "a.txt")}])
    table = Dataset.from_dict({"text": ["x y", "z"]})
    with pytest.raises(EffptError, match=r"Sources 1 and 3 of the dataset, 'a Dataset', have the same contents"):
        assert open_corpus([table, numbered("b", 2), table.select([0, 1])]).fingerprint
