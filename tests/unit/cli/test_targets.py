"""Targets of commands are checked before any work: one line for a folder, a file or an ending that cannot be."""

import json
import os

import pytest

from hf_effpt.cli import main as cli
from hf_effpt.core import targets
from tests.unit.diagnosis.planted import record

FILES = {
    "plan": ["plan", "tiny", "--hours", "1"],
    "plot": ["plot", "run"],
    "evaluate": ["evaluate", "run"],
}
FOLDERS = {
    "tokenizer": ["tokenizer", "text.txt"],
    "compare": ["compare", "tiny", "tiny2.yaml", "--budget", "4steps"],
    "export": ["export", "run"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record()))
    (tmp_path / "text.txt").write_text("some text\n")
    return tmp_path


def refused(words, capsys):
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("words", FILES.values(), ids=FILES)
def test_a_file_is_no_folder_and_lies_in_one(words, folder, capsys):
    assert "which is a folder; name a file in it" in refused([*words, "--out", "run"], capsys)
    assert "which is a folder" in refused([*words, "--out", "new/"], capsys)
    inside = "text.txt/a.yaml" if words[0] != "plot" else "text.txt/a.png"
    assert "text.txt is not a writable folder" in refused([*words, "--out", inside], capsys)
    assert sorted(os.listdir(folder)) == ["run", "text.txt"]


@pytest.mark.parametrize("words", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_no_file(words, folder, capsys):
    assert "'text.txt', which is a file; name a folder" in refused([*words, "--out", "text.txt"], capsys)
    assert "text.txt is not a writable folder" in refused([*words, "--out", "text.txt/new"], capsys)


@pytest.mark.parametrize("words", [*FILES.values(), *FOLDERS.values()], ids=[*FILES, *FOLDERS])
def test_where_nothing_may_be_written_nothing_is_done(words, folder, monkeypatch, capsys):
    monkeypatch.setattr(targets.os, "access", lambda *_: False)  # as for a user who is not root
    out = {"plot": "new/a.png"}.get(words[0], "new/a.yaml")
    assert f"{folder} is not a writable folder" in refused([*words, "--out", out], capsys)


@pytest.mark.parametrize("out", ["loss.xyz", "loss", "loss.png.txt"])
def test_a_picture_has_a_known_ending(out, folder, capsys):
    assert "its ending must be one of .png, .svg" in refused(["plot", "run", "--out", out], capsys)


def test_missing_folders_are_created_and_the_file_told_is_there(folder, capsys):
    assert cli.main(["plot", "run", "--out", "new/folder/loss.svg"]) == 0
    assert capsys.readouterr().out == "Loss curves in new/folder/loss.svg\n"
    assert os.listdir("new/folder") == ["loss.svg"]
