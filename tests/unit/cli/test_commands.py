"""Each subcommand hands its words to the function of the same name, and nothing else."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_effpt.cli.main import main


@pytest.fixture
def calls(monkeypatch):
    """Replaces a function by one that keeps what it is called with."""

    def replace(module, name, result=None):
        kept = SimpleNamespace()

        def stand_in(*args, **kwargs):
            kept.args, kept.kwargs = args, kwargs
            return result

        monkeypatch.setattr(importlib.import_module(module), name, stand_in)
        return kept

    return replace


def test_tokenizer(tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text('{"body": "one two three"}\n' * 50)
    words = ["tokenizer", str(tmp_path / "text.jsonl"), "--vocab_size", "320", "--kind", "bpe", "--cased"]
    assert main([*words, "--text_column", "body", "--out", str(tmp_path / "tok")]) == 0
    assert "bpe tokenizer of 320 tokens" in (shown := capsys.readouterr().out)
    assert "tokens a word, 0.000% of the text unknown" in shown
    assert (tmp_path / "tok" / "tokenizer.json").is_file()
    assert main([*words, "--out", str(tmp_path / "other")]) == 2
    assert "there is no column 'text'; the columns are 'body'" in capsys.readouterr().err


def test_tokenizer_refuses_a_vocabulary_that_is_no_multiple_of_64(tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one two three four five six seven eight nine ten\n" * 20)
    assert main(["tokenizer", str(corpus), "--vocab_size", "30522", "--out", str(tmp_path / "tok")]) == 2
    assert "30528" in capsys.readouterr().err
    assert not (tmp_path / "tok").exists()


def test_pretrain_passes_the_recipe_with_its_flags(calls, tmp_path, capsys):
    kept = calls("hf_effpt.pretraining", "pretrain", result=SimpleNamespace(summary=lambda: "Trained."))
    out = str(tmp_path / "out")
    flags = ["--training.output_dir", out, "--methods.layerdrop.p", "0.1", "--resume", "--training.budget", "3steps"]
    assert main(["pretrain", "tiny", *flags]) == 0
    (recipe,) = kept.args
    assert kept.kwargs == {"resume": True}
    assert (recipe.training.output_dir, recipe.training.budget) == (out, "3steps")
    assert recipe.methods == {"layerdrop": {"p": 0.1}}
    assert capsys.readouterr().out == "Trained.\n"


def test_pretrain_refuses_a_flag_of_no_section(capsys):
    assert main(["pretrain", "tiny", "--budget", "10min"]) == 2
    assert "There is no setting `--budget`" in capsys.readouterr().err


def test_export(calls):
    kept = calls("hf_effpt.hub.export", "export")
    assert main(["export", "out/checkpoint-9", "--out", "exported"]) == 0
    assert kept.args == ("out/checkpoint-9", "exported")


@pytest.fixture
def pushed(calls):
    calls("hf_effpt.hub.push", "files_to_push", result=["config.json", "run.json"])
    return calls("hf_effpt.hub.push", "push", result="https://huggingface.co/org/name")


def test_push_leaves_the_visibility_to_the_hub_unless_told(pushed):
    assert main(["push", "out", "org/name", "--yes"]) == 0
    assert pushed.kwargs == {"private": None, "revision": None, "card": {}}


def test_push(pushed, capsys):
    flags = ["--private", "--revision", "draft", "--license", "mit", "--language", "en,de", "--widget", "A, [MASK]."]
    assert main(["push", "out", "org/name", *flags, "--yes"]) == 0
    card = {"license": "mit", "language": ["en", "de"], "widget": ["A, [MASK]."]}
    assert pushed.args == (Path("out"), "org/name")
    assert pushed.kwargs == {"private": True, "revision": "draft", "card": card}
    listed = "To org/name: config.json, run.json, README.md"
    assert capsys.readouterr().out == f"{listed}\nhttps://huggingface.co/org/name\n"


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES", 0), ("", 2), ("n", 2), (None, 2)])
def test_push_asks_first(pushed, monkeypatch, capsys, answer, code):
    def ask(question):
        assert "[y/N]" in question
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", ask)
    assert main(["push", "out", "org/name"]) == code
    assert hasattr(pushed, "args") == (code == 0)
    assert ("Nothing was uploaded" in capsys.readouterr().err) == (code == 2)
