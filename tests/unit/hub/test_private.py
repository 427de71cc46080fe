"""Nothing that leaves the machine tells of tokens, home folders or absolute paths."""

import json
import os
from pathlib import Path

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.hub.card import model_card
from hf_effpt.hub.private import scrubbed, without_secrets, words_without_secrets
from hf_effpt.hub.push import files_to_push, push
from tests import tiny

TOKEN = "hf_" + "a1B2" * 8
HOME = str(Path.home())


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["pretrain", "tiny", "--training.hub_token", "xyz", "--resume"],
         ["pretrain", "tiny", "--training.hub_token", "***", "--resume"]),
        (["--training.hub_token=xyz"], ["--training.hub_token=***"]),
        (["--api-key", "xyz"], ["--api-key", "***"]),
        (["push", "out", TOKEN], ["push", "out", "***"]),
        (["--data.add_tokens", "500", "--data.tokenizer", "out"],
         ["--data.add_tokens", "500", "--data.tokenizer", "out"]),
    ],
)  # fmt: skip
def test_secrets_of_a_command_line(words, kept):
    assert words_without_secrets(words) == kept


def test_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert without_secrets("key 0123456789abcdef, token " + TOKEN) == "key ***, token ***"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (f"{HOME}/corpora/german", "german"),
        (f"dataset: {HOME}/corpora/german/\noutput_dir: /tmp/out", "dataset: german\noutput_dir: out"),
        ("effpt pretrain '~/my recipes/a.yaml'", "effpt pretrain 'my recipes/a.yaml'"),
        (r"C:\Users\anna\text", "text"),
        ("https://huggingface.co/org/name", "https://huggingface.co/org/name"),
        ("0.3 nats/token, 1/2, and/or, out/checkpoint-3", "0.3 nats/token, 1/2, and/or, out/checkpoint-3"),
        ("regular /nowhere/expression", "regular /nowhere/expression"),
        ({"a": [f"{HOME}/x", 3, None], f"{HOME}/k": True}, {"a": ["x", 3, None], "k": True}),
    ],
)
def test_paths(text, public):
    assert scrubbed(text) == public


def test_every_file_that_goes_out(hub, tmp_path, monkeypatch):
    """A run whose recipe and command line tell of a token and of places on this machine."""
    monkeypatch.setattr("sys.argv", ["/opt/bin/effpt", "pretrain", f"{HOME}/r.yaml", "--training.hub_token", TOKEN])
    trainer = tiny.trainer(tmp_path / "run", layers=2, budget="1steps", hub_model_id="org/run", hub_token=TOKEN)
    trainer.facts = {"recipe": {"data": {"dataset": f"{HOME}/corpora/german"}, "training": {"output_dir": HOME}}}
    trainer.train()
    trainer.save_model()
    (tmp_path / "run" / "recipe.yaml").write_text(f"data: {{dataset: {HOME}/corpora/german}}\n")
    assert TOKEN not in (tmp_path / "run" / "run.json").read_text()
    for path in (tmp_path / "run").iterdir():
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    assert HOME + "/" not in (tmp_path / "run" / "README.md").read_text()
    push(tmp_path / "run", "org/run")
    for name, data in hub.repos["org/run"].branches["main"].files.items():
        assert TOKEN.encode() not in data, name
        assert (HOME + "/").encode() not in data, name
    published = json.loads(hub.repos["org/run"].branches["main"].files["run.json"])
    assert published["recipe"]["data"]["dataset"] == "german"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["data"]["dataset"].startswith(HOME)


def test_a_card_tells_no_paths(record):
    record["recipe"] = {"data": {"dataset": f"{HOME}/corpora/german"}}
    record["command"] = f"effpt pretrain {HOME}/recipe.yaml"
    text = str(model_card(record))
    assert HOME + "/" not in text
    assert "dataset: german" in text


def test_links_out_of_the_folder_are_refused(hub, finished_run, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (finished_run / "tokenizer_config.json").unlink()
    os.symlink(tmp_path / "secret", finished_run / "tokenizer_config.json")
    with pytest.raises(EffptError, match=r"is a link to .*secret.* not uploaded"):
        push(finished_run, "org/first")
    assert not hub.repos


def test_a_public_repository_is_not_taken_for_a_private_one(hub, finished_run):
    push(finished_run, "org/first")
    before = len(hub.repos["org/first"].commits)
    with pytest.raises(EffptError, match="is a public repository, and nothing was uploaded"):
        push(finished_run, "org/first", private=True)
    assert len(hub.repos["org/first"].commits) == before


def test_a_license_is_in_the_card(hub, finished_run):
    push(finished_run, "org/first", card={"license": "apache-2.0"})
    assert b"license: apache-2.0" in hub.repos["org/first"].branches["main"].files["README.md"]
    (finished_run / "README.md").write_text((finished_run / "README.md").read_text() + "\nHand-written.\n")
    push(finished_run, "org/second", card={"license": "mit", "widget": ["A [MASK]."]})
    card = hub.repos["org/second"].branches["main"].files["README.md"].decode()
    assert "license: mit" in card
    assert "widget:\n- text: A [MASK].\n" in card
    assert "Hand-written." in card


def test_nothing_else_of_the_folder_goes_out(hub, finished_run):
    (finished_run / "notes.txt").write_text("private")
    (finished_run / "checkpoint-9").mkdir()
    (finished_run / "checkpoint-9" / "optimizer.pt").write_bytes(b"0")
    assert "notes.txt" not in files_to_push(finished_run)
    push(finished_run, "org/first")
    assert {*hub.repos["org/first"].branches["main"].files} - {".gitattributes", "README.md"} == {
        *files_to_push(finished_run)
    }
