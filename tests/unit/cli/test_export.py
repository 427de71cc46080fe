"""`effpt export --depth`: what is asked for arrives, and what makes no sense is refused."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM

from hf_effpt.cli.main import main
from tests import tiny


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoint-5"
    torch.manual_seed(0)
    tiny.model({"layerdrop": {"p": 0.2}}).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_shallower(checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--depth", "2"]) == 0
    assert f"Exported {checkpoint} to {tmp_path / 'out'}" in capsys.readouterr().out
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2


@pytest.mark.parametrize("flag", ["--dataset", "--text"])
def test_by_search(checkpoint, tmp_path, flag):
    corpus = tmp_path / "text.txt"
    corpus.write_text(" ".join(f"w{index % 100}" for index in range(6000)))
    words = ["export", str(checkpoint), "--out", str(tmp_path / "out"), "--depth", "3", "--strategy", "search"]
    assert main([*words, flag, str(corpus)]) == 0
    pruning = json.loads((tmp_path / "out" / "run.json").read_text())["pruning"]
    assert pruning["chosen_by"]["exhaustive"]
    assert len(pruning["kept"]) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--depth", "9"], "A depth of 9 cannot be had of a model with 4 layers; choose 1 to 4."),
        (["--depth", "0"], "A depth of 0"),
        (["--depth", "2", "--strategy", "serch"], "did you mean `search`?"),
        (["--depth", "2", "--strategy", "search"], "name some by `--text`"),
        (["--depth", "2", "--dataset", "text.txt"], "`every_other` chooses layers without text"),
        (["--strategy", "search"], "give `--depth`, too"),
        (["--dataset", "text.txt"], "give `--depth`, too"),
    ],
)
def test_what_makes_no_sense_is_refused(checkpoint, tmp_path, capsys, words, says):
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_named_first(tmp_path, capsys):
    assert main(["export", str(tmp_path / "gone"), "--out", str(tmp_path / "out"), "--depth", "2"]) == 2
    assert "is not a folder" in capsys.readouterr().err
