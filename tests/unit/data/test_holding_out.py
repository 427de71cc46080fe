import json
import logging
import shutil

import numpy as np
import pytest
from datasets import Dataset

from hf_effpt.core.errors import EffptError
from hf_effpt.data import corpus, corpus_of, facts, open_corpus, pack
from hf_effpt.data.document_meter import document_sizes
from hf_effpt.data.holding_out import held_out, open_validation


def chunks(sizes, size=17):
    """Sizes in several arrays, as `held_out` takes them."""
    return lambda: (np.array(sizes[first : first + size]) for first in range(0, len(sizes), size))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.8])
@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_the_share_is_of_the_text_whatever_the_sizes(share, spread):
    draw = np.random.default_rng(0)
    sizes = draw.lognormal(5, spread, 3000).astype(int) + 1
    aside = held_out(chunks(sizes), share, seed=3)
    assert 0.97 * share < sizes[aside].sum() / sizes.sum() <= share
    assert aside.tolist() == held_out(chunks(sizes, 1000), share, seed=3).tolist()
    assert aside.tolist() != held_out(chunks(sizes), share, seed=4).tolist()
    # Large documents are drawn as small ones are, as long as they fit.
    fit = sizes < share * sizes.sum() / 10
    assert not spread or aside[fit & (sizes > np.median(sizes))].mean() == pytest.approx(aside[fit].mean(), abs=0.03)


def test_a_document_larger_than_the_share_is_trained_on():
    sizes = [500_000, *[100] * 400, 500_000]
    for seed in range(5):
        aside = held_out(chunks(sizes), 0.01, seed)
        assert not aside[[0, -1]].any()
        assert aside.sum() == 103  # 99 % of a hundredth of 1,040,000
    assert not held_out(chunks([1000, 1000]), 0.01).any()
    assert not held_out(chunks([1000, 1000]), None).any()
    assert held_out(chunks([1000, 1000]), 0.5).sum() == 1


def test_training_documents_that_equal_held_out_ones_are_counted(tokenizer, documents, caplog):
    texts = [*documents, *(text.upper() for text in documents)]
    aside = held_out(lambda: [document_sizes(texts)], 0.2)
    halves = aside.reshape(2, 60)
    doubles = int((halves[0] ^ halves[1]).sum())
    with caplog.at_level(logging.WARNING, logger="hf_effpt"):
        packed = pack(corpus_of(texts), tokenizer, sequence_length=16, validation=0.2)
    assert facts(packed["train"])["doubles"] == doubles > 5
    assert f"{doubles} of {120 - aside.sum()} training documents equal held-out ones" in caplog.text
    assert "deduplicate: exact" in caplog.text
    caplog.clear()
    apart = pack(corpus_of(documents), tokenizer, sequence_length=16, validation=0.2)
    assert facts(apart["train"])["doubles"] == 0
    assert not caplog.records


def test_doubles_of_a_validation_corpus_are_counted_in_both_orders(tokenizer, documents, tmp_path):
    settings = {"sequence_length": 16, "cache_dir": tmp_path}
    few, many = corpus_of([*documents[:2], " new\n" * 50]), corpus_of([*documents, *documents[:20]])
    for _ in range(2):  # the second time from the cache
        assert facts(pack(many, tokenizer, validation=few, **settings)["train"])["doubles"] == 4
        assert facts(pack(few, tokenizer, validation=many, **settings)["train"])["doubles"] == 2
    for path in tmp_path.glob("doubles/*/doubles.json"):  # as of older versions, whose contents are not checked
        (path.parent / ".contents.json").write_text(json.dumps({path.name: path.stat().st_size}))
        path.write_bytes(bytes(path.stat().st_size))
    assert facts(pack(many, tokenizer, validation=few, **settings)["train"])["doubles"] == 4
    assert "doubles" not in facts(pack(few, tokenizer, validation=None, **settings)["train"])


def test_validation_text_that_is_trained_on_is_refused(tokenizer, documents, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(documents[number])
    corpus = open_corpus(str(folder))
    with pytest.raises(
        EffptError, match=r"validation='.*texts/1\.txt' is text to train on.*both read .*1\.txt.*0\.01"
    ):
        open_validation(str(folder / "1.txt"), corpus)
    (folder / "link.txt").symlink_to(folder / "1.txt")
    with pytest.raises(EffptError, match=r"both read .*1\.txt"):
        open_validation(str(folder / "link.txt"), corpus)
    (folder / "link.txt").unlink()
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(EffptError, match="both have the same contents"):
        pack(corpus, tokenizer, validation=str(tmp_path / "copy"))
    with pytest.raises(EffptError, match="both have the same contents"):
        pack(corpus_of(documents), tokenizer, validation=corpus_of(documents))
    (tmp_path / "copy" / "2.txt").unlink()
    assert open_validation(str(tmp_path / "copy"), corpus).files


@pytest.mark.parametrize("share", [0, 0.0, 1, 1.5, -0.1])
def test_impossible_shares(share):
    with pytest.raises(EffptError, match=f"validation={share} must be a share between 0 and 1"):
        open_validation(share, corpus_of(["text"]))


def test_validation_text_that_is_a_part_of_the_training_text_is_refused(tokenizer, documents, tmp_path):
    """Whatever it is given as: a source of a mixture, a dataset, or a file of another format."""
    table, other = Dataset.from_dict({"text": documents[:9]}), corpus_of(documents[9:], name="other")
    for dataset in ([table, other], [{"path": other, "weight": 1}, {"path": table, "weight": 2}]):
        with pytest.raises(
            EffptError, match=r"'a Dataset' is text to train on.* have a source with the same contents"
        ):
            open_validation(table, open_corpus(dataset))
    with pytest.raises(EffptError, match="have a source with the same contents"):
        open_validation([other, corpus_of(["new"])], open_corpus([other, table]))
    (tmp_path / "a.txt").write_text("\n\n".join(documents[:9]))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text.upper()}) + "\n" for text in documents))
    with pytest.raises(EffptError, match=r"a\.jsonl' is text to train on: all 9 training documents, of '.*a\.txt'"):
        pack(str(tmp_path / "a.txt"), tokenizer, sequence_length=16, validation=str(tmp_path / "a.jsonl"))


def test_validation_text_is_cut_and_streamed_as_the_training_text(tmp_path, monkeypatch):
    train, valid = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_text("\n".join(f"This is sentence {number}." for number in range(100)))
    valid.write_text("This is one.\nThis is two.\n\nThis is three.\n\n" * 3)
    assert open_corpus(str(valid)).documents == "blank_lines"
    assert open_validation(str(valid), open_corpus(str(train))).documents == "lines"
    assert open_validation(str(valid), corpus_of(["a"]), documents="file").documents == "file"
    asked = []
    monkeypatch.setattr(
        corpus, "open_hub", lambda *of: (asked.append(of), (lambda: iter(["a"]), lambda: str(of), None))[1]
    )
    for streaming in (True, False):
        open_validation("org/name", open_corpus("org/other", streaming=streaming))
    assert [(name, split, streams) for name, _, split, streams in asked] == [
        ("org/other", "train", True), ("org/name", "validation", True),
        ("org/other", "train", False), ("org/name", "validation", False),
    ]  # fmt: skip


def test_how_validation_text_is_cut_is_told(tokenizer, documents, tmp_path):
    (tmp_path / "valid.txt").write_text("\n".join(documents[:3]))
    settings = {"validation": open_corpus(str(tmp_path / "valid.txt"), documents="lines"), "sequence_length": 16}
    told = facts(pack(corpus_of(documents[3:]), tokenizer, **settings)["train"])["held_out"]
    assert (told["documents"], told["documents_by"]) == (3, "lines")
