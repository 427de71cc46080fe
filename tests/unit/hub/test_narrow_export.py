"""Exports of models with narrower layers: with their code by default, or dense; and what is done with the folders."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

import hf_effpt
from hf_effpt.cli.main import main
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ticket import Ticket
from hf_effpt.core.width import cut_width
from hf_effpt.evaluation.pruning import prune_layers, pruner_of
from hf_effpt.evaluation.suite import evaluate
from hf_effpt.hub.export import export
from hf_effpt.hub.push import push
from hf_effpt.models.pruned_bert import PrunedBertForMaskedLM, PrunedBertModel
from tests import tiny

from .conftest import SIZES

CODE = {"configuration_pruned_bert.py", "modeling_pruned_bert.py"}
WIDTHS = [[2, 64], [0, 8], [1, 40], [1, 24]]
TICKET = Ticket(
    heads=((0, 1), (), (1,), (0,)),
    neurons=(tuple(range(64)), tuple(range(8)), tuple(range(20, 60)), tuple(range(24))),
    shape=((2, 64),) * 4,
)
IDS = torch.tensor([[2, 5, 6, 7, 4, 3]])


def narrow(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    cut_width(model.base_model, TICKET)
    return model.eval()


@pytest.fixture
def small(tmp_path, tokenizer):
    """A training checkpoint after a cut, in the folder of a run that did not finish."""
    torch.manual_seed(0)
    model = narrow(hf_effpt.EffptBertForMaskedLM(hf_effpt.EffptBertConfig(**SIZES)))
    model.save_pretrained(tmp_path / "run" / "checkpoint-9")
    tokenizer.save_pretrained(tmp_path / "run" / "checkpoint-9")
    with torch.no_grad():
        return tmp_path / "run" / "checkpoint-9", model(IDS).logits


def logits_of(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


def run_of(folder):
    return json.loads((Path(folder) / "run.json").read_text())


def same(model, logits, atol=1e-6):
    torch.testing.assert_close(logits_of(model), logits, rtol=0, atol=atol)


def test_by_default_it_is_narrow_and_brings_its_code(small, tmp_path):
    checkpoint, logits = small
    out = export(checkpoint, tmp_path / "out")
    assert CODE < names(out)
    for name in CODE:
        assert (out / name).read_text() == (Path(hf_effpt.models.pruned_bert.__file__).parent / name).read_text()
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert type(model) is PrunedBertForMaskedLM
    same(model, logits)
    assert run_of(out)["model"]["layer_widths"] == WIDTHS
    assert run_of(out)["model"]["parameters"] == model.num_parameters()
    assert run_of(out)["ledger"]["layer_widths"] == WIDTHS


def test_dense_it_is_a_stock_model_of_the_full_width(small, tmp_path):
    checkpoint, logits = small
    out = export(checkpoint, tmp_path / "out", dense=True)
    assert not CODE & names(out)
    assert type(BertConfig.from_pretrained(out)) is BertConfig
    same(BertForMaskedLM.from_pretrained(out), logits, atol=1e-5)
    same(AutoModelForMaskedLM.from_pretrained(out), logits, atol=1e-5)
    assert "layer_widths" not in run_of(out)["model"]
    assert run_of(out)["model"]["stock_class"] == "BertForMaskedLM"


def test_a_finished_run_is_copied_or_made_dense(small, tmp_path):
    checkpoint, logits = small
    root = export(checkpoint, tmp_path / "root")
    copied = export(root, tmp_path / "copied")
    assert CODE < names(copied)
    same(AutoModelForMaskedLM.from_pretrained(copied), logits)
    dense = export(root, tmp_path / "dense", dense=True)
    assert not CODE & names(dense)
    same(BertForMaskedLM.from_pretrained(dense), logits, atol=1e-5)
    model = run_of(dense)["model"]
    assert model["stock_class"] == "BertForMaskedLM"
    assert "layer_widths" not in model
    assert model["parameters"] == BertForMaskedLM.from_pretrained(dense).num_parameters()


def test_dense_changes_nothing_where_nothing_was_cut(finished_run, tmp_path):
    before = logits_of(BertForMaskedLM.from_pretrained(finished_run))
    same(BertForMaskedLM.from_pretrained(export(finished_run, tmp_path / "out", dense=True)), before, atol=0)


def test_the_command_line_has_dense(small, tmp_path):
    checkpoint, logits = small
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--dense"]) == 0
    same(BertForMaskedLM.from_pretrained(tmp_path / "out"), logits, atol=1e-5)


@pytest.mark.parametrize("finished", [False, True])
def test_with_fewer_layers_the_widths_are_those_of_the_kept(small, tmp_path, finished):
    source = export(small[0], tmp_path / "root") if finished else small[0]
    out = export(source, tmp_path / "out", pruner_of=partial(pruner_of, depth=2))
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert model.config.layer_widths == run_of(out)["model"]["layer_widths"] == [WIDTHS[0], WIDTHS[2]]
    dense = export(source, tmp_path / "dense", pruner_of=partial(pruner_of, depth=2), dense=True)
    same(BertForMaskedLM.from_pretrained(dense), logits_of(model), atol=1e-5)


def test_pruning_leaves_the_model_as_it_was(small):
    model = hf_effpt.EffptBertForMaskedLM.from_pretrained(small[0]).export()
    shallower = prune_layers(model, 1)
    assert shallower.config.layer_widths == WIDTHS[:1]
    assert model.config.layer_widths == WIDTHS
    same(model, small[1])


def test_the_encoder_alone_is_narrow_too(small, tmp_path):
    out = export(small[0], tmp_path / "out", as_bert=True)
    assert CODE < names(out)
    model = PrunedBertModel.from_pretrained(out, add_pooling_layer=False)
    dense = BertModel.from_pretrained(
        export(out, tmp_path / "dense", as_bert=True, dense=True), add_pooling_layer=False
    )
    with torch.no_grad():
        hidden, reference = model(IDS).last_hidden_state, dense(IDS).last_hidden_state
    torch.testing.assert_close(hidden, reference, rtol=0, atol=1e-5)


def test_the_card_says_how_to_load_it_and_what_was_kept(small, tmp_path):
    card = (export(small[0], tmp_path / "out") / "README.md").read_text()
    assert card.count(", trust_remote_code=True)") == 3  # to load the tokenizer and the model, and to fine-tune it
    assert "num_labels=2, trust_remote_code=True)" in card
    assert "effpt export FOLDER --out DIR --dense" in card
    assert "It is an ordinary Transformers checkpoint" not in card
    for layer, (heads, neurons) in enumerate(WIDTHS):
        assert f"| {layer} | {heads} | {neurons} |" in card
    dense = (export(small[0], tmp_path / "dense", dense=True) / "README.md").read_text()
    assert "trust_remote_code" not in dense
    assert "It is an ordinary Transformers checkpoint" in dense


def test_the_code_is_published_with_it(hub, small, tmp_path):
    out = export(small[0], tmp_path / "out")
    push(out, "org/small")
    published = hub.repos["org/small"].branches["main"].files
    assert CODE < set(published)
    assert '"org/small", trust_remote_code=True' in published["README.md"].decode()


def test_a_folder_without_a_record_is_no_run(small, tmp_path):
    hf_effpt.EffptBertForMaskedLM.from_pretrained(small[0]).export().save_pretrained(tmp_path / "plain")
    with pytest.raises(EffptError, match="`PrunedBertForMaskedLM` that no run of hf_effpt has written"):
        export(tmp_path / "plain", tmp_path / "out")


def test_a_checkpoint_whose_widths_are_not_its_weights_is_refused(small, tmp_path):
    config = json.loads((small[0] / "config.json").read_text())
    config["layer_widths"][0] = [1, 64]
    (small[0] / "config.json").write_text(json.dumps(config))
    with pytest.raises(EffptError, match=r"do not belong to its config\.json; these do not fit: .*query"):
        export(small[0], tmp_path / "out")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_it_is_evaluated_like_any_other(small, tmp_path):
    out = export(small[0], tmp_path / "out")
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 300)
    task = tmp_path / "tasks" / "cola"
    task.mkdir(parents=True)
    for split, count in (("train", 8), ("validation", 8)):
        rows = [{"sentence": "the cat sat" + " on" * (i % 3), "label": i % 2} for i in range(count)]
        Dataset.from_list(rows).to_parquet(task / f"{split}.parquet")
    narrow_result = evaluate(out, ["loss"], text=str(tmp_path / "text.txt"))
    dense = export(out, tmp_path / "dense", dense=True)
    dense_result = evaluate(dense, ["loss"], text=str(tmp_path / "text.txt"))
    losses = [
        {name: score["value"] for name, score in each["scores"].items()} for each in (narrow_result, dense_result)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    tuned = evaluate(out, ["cola"], data=str(tmp_path), seeds=1, lora=2)
    assert tuned["scores"]


def test_the_root_of_a_run_has_it(tmp_path):
    trainer = tiny.trainer(tmp_path / "run")
    model = narrow(trainer.model)
    trainer.save_model()
    assert CODE < names(tmp_path / "run")
    root = AutoModelForMaskedLM.from_pretrained(tmp_path / "run")
    same(root, logits_of(model))
    assert run_of(tmp_path / "run")["model"]["layer_widths"] == WIDTHS
    assert AutoTokenizer.from_pretrained(tmp_path / "run")("w1")["input_ids"] == [2, 6, 3]


def test_mismatched_sizes_are_ignored_only_where_they_are_named_and_refused():
    """Transformers would give parameters of the wrong shape new random values."""
    package = Path(hf_effpt.__file__).parent
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for _ in re.findall(r"ignore_mismatched_sizes\W{1,3}True", path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == ["hub/export.py", "training/checkpoints.py"]
