import json
import socket

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from hf_effpt.core.errors import EffptError
from hf_effpt.hub.card import model_card
from hf_effpt.hub.export import export
from hf_effpt.hub.push import push
from tests.local_hub import READ_TOKEN


def files(hub, repo_id, branch="main"):
    return hub.repos[repo_id].branches[branch].files


def test_only_the_exported_model_goes_out(hub, finished_run):
    url = push(finished_run, "org/first")
    assert url == f"{hub.endpoint}/org/first/commit/{hub.repos['org/first'].branches['main'].oid}"
    assert sorted(files(hub, "org/first")) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name, data in files(hub, "org/first").items():
        if name not in (".gitattributes", "README.md"):
            assert data == (finished_run / name).read_bytes()


@pytest.mark.parametrize("written_for", [None, "me/elsewhere"])
def test_the_published_card_knows_its_address(hub, finished_run, record, written_for):
    if written_for is not None:
        model_card(record, written_for).save(finished_run / "README.md")
    before = (finished_run / "README.md").read_text()
    push(finished_run, "org/first")
    card = ModelCard.load("org/first")
    assert str(card) == str(model_card(record, "org/first"))
    assert card.data.eval_results[0].metric_value == 3.5
    assert card.data.tags[0] == "hf_effpt"
    assert (finished_run / "README.md").read_text() == before


def test_an_edited_card_is_published_as_it_is(hub, finished_run):
    edited = (finished_run / "README.md").read_text() + "\nHand-written.\n"
    (finished_run / "README.md").write_text(edited)
    push(finished_run, "org/first")
    assert files(hub, "org/first")["README.md"].decode() == edited


def test_a_run_without_a_card_gets_one(hub, finished_run, record):
    (finished_run / "README.md").unlink()
    push(finished_run, "org/first")
    assert files(hub, "org/first")["README.md"].decode() == str(model_card(record, "org/first"))


@pytest.mark.parametrize(("private", "expected"), [(None, False), (False, False), (True, True)])
def test_private(hub, finished_run, private, expected):
    push(finished_run, "org/first", private=private)
    assert HfApi().model_info("org/first").private is expected
    assert HfApi(token=READ_TOKEN).repo_exists("org/first") is not expected


def test_a_revision_is_a_branch_of_its_own(hub, finished_run, record):
    push(finished_run, "org/first")
    (finished_run / "run.json").write_text(json.dumps(record | {"license": "mit"}))
    push(finished_run, "org/first", revision="licensed")
    push(finished_run, "org/first", revision="licensed")  # the branch is there already
    assert json.loads(files(hub, "org/first", "licensed")["run.json"])["license"] == "mit"
    assert "license" not in json.loads(files(hub, "org/first")["run.json"])
    assert AutoModelForMaskedLM.from_pretrained("org/first", revision="licensed").config.num_hidden_layers == 4


def test_a_second_push_updates_and_an_unchanged_one_does_nothing(hub, finished_run):
    first = push(finished_run, "org/first")
    assert push(finished_run, "org/first") == first
    assert len(hub.repos["org/first"].commits) == 2  # the initial one and ours
    model = BertForMaskedLM.from_pretrained(finished_run)
    model.cls.predictions.bias.data += 1
    model.save_pretrained(finished_run)
    assert push(finished_run, "org/first") != first
    loaded = AutoModelForMaskedLM.from_pretrained("org/first")
    assert loaded.cls.predictions.bias.equal(model.cls.predictions.bias)


def test_an_exported_checkpoint_can_be_pushed(hub, checkpoint, tmp_path):
    push(export(checkpoint, tmp_path / "stock"), "org/early")
    assert type(AutoModelForMaskedLM.from_pretrained("org/early")) is BertForMaskedLM
    assert AutoTokenizer.from_pretrained("org/early")("cat")["input_ids"] == [2, 6, 3]


def test_a_training_checkpoint_is_refused_with_the_fix(hub, checkpoint):
    with pytest.raises(EffptError, match=r"effpt export .*checkpoint-2 --out DIR"):
        push(checkpoint, "org/first")
    with pytest.raises(EffptError, match=r"has no config.json.* `effpt export .*checkpoint-2 --out DIR` makes of it"):
        push(checkpoint.parent, "org/first")
    assert not hub.repos


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("run.json", "no finished run"),
        ("model.safetensors", "holds no saved model"),
        ("config.json", "no config.json"),
    ],
)
def test_a_folder_that_is_no_exported_model_is_refused(hub, finished_run, missing, says):
    (finished_run / missing).unlink()
    with pytest.raises(EffptError, match=says):
        push(finished_run, "org/first")
    assert not hub.repos


def test_no_token(hub, finished_run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(EffptError, match=r"hf auth login.*HF_TOKEN"):
        push(finished_run, "org/first")
    push(finished_run, "org/first", token="hf_local_write")


@pytest.mark.parametrize("token", ["hf_wrong", READ_TOKEN])
def test_a_token_that_may_not_write(hub, finished_run, token):
    with pytest.raises(EffptError, match=r"refused the upload to `org/first` \(HTTP 40[13].*write access"):
        push(finished_run, "org/first", token=token)


def test_a_name_the_hub_does_not_accept(hub, finished_run):
    with pytest.raises(EffptError, match="'a/b/c' is not a name the Hub accepts"):
        push(finished_run, "a/b/c")


def test_nobody_answers(hub, finished_run, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(EffptError, match=r"127\.0\.0\.1:\d+ cannot be reached .* HF_ENDPOINT"):
            push(finished_run, "org/first")


def test_offline_mode(hub, finished_run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EffptError, match="HF_HUB_OFFLINE is not set"):
        push(finished_run, "org/first")
