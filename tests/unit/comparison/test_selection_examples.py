"""The arms of the comparison of strategies, and the corpus that is spoiled for them."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from hf_effpt.comparison.arms import Arm, load_arms
from hf_effpt.comparison.controls import find_control
from hf_effpt.comparison.run_grid import identity
from hf_effpt.data.corpus import open_corpus
from tests.unit.comparison.records import runs

FOLDER = Path(__file__).parents[3] / "examples" / "compare" / "selection"
ARMS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PICKS_NO_ROWS = ("mlm", "random", "adaptive_masking")


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ARMS)
def test_arms_differ_in_their_strategy_alone(name):
    content, plain = read(name), read("mlm")
    methods = content.pop("methods", {})
    assert content == plain
    if name != "mlm":
        extra = {"perceptron_ensemble": {"warmup": 50}, "rho": {"holdout": "holdout/"}}.get(name, {})
        when = {"start": 0.0, "end": 1.0, "interrupt": 0}
        assert methods == {"selection": {"strategy": name, "keep": 0.5, **when, **extra}}


def test_random_rows_are_the_control_of_every_arm_that_picks_rows():
    recipes = {}
    for arm in load_arms([FOLDER / f"{name}.yaml" for name in ARMS]):
        recipes[arm.name] = identity(Arm(arm.name, arm.sections).recipe("10steps", 0, "out"))
    found = {name: runs([6.0, 6.1, 6.2]) for name in recipes}
    controls = {name: find_control(name, found, recipes, (), "seconds") for name in recipes}
    assert {name for name, control in controls.items() if control is None} == set(PICKS_NO_ROWS)
    assert {control.arm for control in controls.values() if control is not None} == {"random"}


@pytest.fixture
def spoil(monkeypatch):
    """Runs the script in this process, which has imported what it needs."""

    def run(corpus, out, *more):
        monkeypatch.setattr(sys, "argv", ["spoil_corpus.py", str(corpus), "--out", str(out), *more])
        runpy.run_path(str(FOLDER / "spoil_corpus.py"), run_name="__main__")

    return run


def write(path, number, first=0):
    texts = [
        f"document {n} " + " ".join(f"w{(n * k) % 97}" for k in range(20 + n % 7))
        for n in range(first, first + number)
    ]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return texts


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    return tmp_path / "corpus"


def test_half_of_a_spoiled_corpus_are_copies_and_a_fifth_noise(spoil, corpus, tmp_path, capsys):
    texts = write(corpus / "train.jsonl", 400)
    held_out = write(corpus / "validation.jsonl", 20, first=1000)
    spoil(corpus, tmp_path / "out")
    assert "copies: 199 documents, 49.8% of the bytes" in capsys.readouterr().out
    found = list(open_corpus(str(tmp_path / "out")).texts())
    assert list(open_corpus(str(tmp_path / "out"), split="validation").texts()) == held_out

    counts, size = Counter(found), sum(len(text) for text in found)
    noise = [text for text in found if text not in set(texts)]
    once = [text for text in counts if text in set(texts)]
    copies = sum((times - 1) * len(text) for text, times in counts.items())
    repeated = [text for text, times in counts.items() if times > 1]
    assert copies / size == pytest.approx(0.498, abs=5e-4)
    assert sum(map(len, noise)) / size == pytest.approx(0.2, abs=0.01)
    assert sum(map(len, once)) / size == pytest.approx(0.3, abs=0.01)
    assert size == pytest.approx(sum(map(len, texts)), rel=0.01)
    assert len(repeated) == round(0.1 * len(once))
    assert {word for text in noise for word in text.split()} <= {word for text in texts for word in text.split()}
    assert {len(text.split()) for text in noise} <= {len(text.split()) for text in texts}
    first, last = found[: len(found) // 2], found[len(found) // 2 :]
    assert sum(text in set(noise) for text in first) > 0.3 * len(noise)  # mixed, not one kind after another
    assert sum(text in set(noise) for text in last) > 0.3 * len(noise)


def test_the_same_seed_spoils_alike(spoil, corpus, tmp_path):
    write(corpus / "train.jsonl", 150)
    write(corpus / "validation.jsonl", 5, first=1000)
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        spoil(corpus, tmp_path / name, "--seed", seed)
    a, b, c = ((tmp_path / name / "train-00000.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_of_a_corpus_without_splits_a_hundredth_is_held_out(spoil, corpus, tmp_path):
    texts = write(corpus / "text.jsonl", 300)
    spoil(corpus, tmp_path / "out")
    assert list(open_corpus(str(tmp_path / "out"), split="validation").texts()) == texts[::100]
    assert not set(texts[::100]) & set(open_corpus(str(tmp_path / "out")).texts())


def test_nor_is_a_corpus_without_a_validation_split_refused(spoil, corpus, tmp_path):
    texts = write(corpus / "train-0.jsonl", 300)
    spoil(corpus, tmp_path / "out")
    assert list(open_corpus(str(tmp_path / "out"), split="validation").texts()) == texts[::100]


def test_as_much_is_taken_as_asked_for(spoil, corpus, tmp_path):
    texts = write(corpus / "text.jsonl", 600)
    size = sum(len(text.encode()) for text in texts)
    spoil(corpus, tmp_path / "out", "--megabytes", str(size / 2e6))
    parts = [list(open_corpus(str(tmp_path / "out"), split=split).texts()) for split in ("train", "validation")]
    taken, held_out = (sum(len(text.encode()) for text in part) for part in parts)
    assert 0.45 * size < taken < 0.65 * size
    assert 0 < held_out < size / 75


def test_a_few_documents_cannot_be_spoiled(spoil, corpus, tmp_path):
    write(corpus / "train.jsonl", 20)
    write(corpus / "validation.jsonl", 5, first=1000)
    with pytest.raises(SystemExit, match="has 20 documents to train on, and it takes 100"):
        spoil(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()
