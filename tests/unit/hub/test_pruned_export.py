"""Exports with fewer layers: of checkpoints and of finished runs, with a record and a card that say so."""

import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertModel, ElectraConfig, ElectraForMaskedLM

from hf_effpt.core.depth import set_order
from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation import layer_choice
from hf_effpt.evaluation.pruning import pruner_of
from hf_effpt.hub.export import export
from hf_effpt.models import EffptBertConfig, EffptBertForMaskedLM, McBertConfig, McBertForPreTraining
from hf_effpt.models.build import config_for, model_for

from .conftest import SIZES

IDS = torch.tensor([[2, 5, 6, 7, 4, 3]])


def pruned(source, out, depth, strategy="every_other", **own):
    return export(source, out, pruner_of=partial(pruner_of, depth=depth, strategy=strategy), **own)


def deep(folder, tokenizer, **methods):
    """A checkpoint of four layers."""
    torch.manual_seed(3)
    model = EffptBertForMaskedLM(EffptBertConfig(**SIZES, methods=methods)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def text(tmp_path):
    path = tmp_path / "text.jsonl"
    words = ["the cat sat on the mat", "the mat sat on the cats", "on the mat the cat sat"]
    path.write_text("".join(json.dumps({"text": " ".join([words[i % 3]] * 30)}) + "\n" for i in range(20)))
    return str(path)


def test_a_checkpoint_becomes_a_shallower_stock_model(tokenizer, tmp_path):
    model = deep(tmp_path / "run" / "checkpoint-9", tokenizer, layerdrop={"p": 0.5, "heads": 0.1})
    out = pruned(tmp_path / "run" / "checkpoint-9", tmp_path / "out", 2)
    stock = AutoModelForMaskedLM.from_pretrained(out)
    assert type(stock) is BertForMaskedLM
    assert stock.config.num_hidden_layers == 2
    set_order(model.bert, [0, 2])
    with torch.no_grad():
        torch.testing.assert_close(stock(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)
    run = json.loads((out / "run.json").read_text())
    assert run["pruning"] == {"strategy": "every_other", "layers": 4, "kept": [0, 2], "chosen_by": {}}
    assert run["model"]["parameters"] == stock.num_parameters()
    card = (out / "README.md").read_text()
    assert (
        "Of its 4 layers, counted from 0, those left are 0, 2, chosen by `every_other` and not trained since." in card
    )


def test_a_finished_run_loses_what_is_not_true_of_fewer_layers(finished_run, tmp_path):
    whole = BertForMaskedLM.from_pretrained(finished_run)
    (finished_run / "ticket.json").write_text("{}")
    run = json.loads((finished_run / "run.json").read_text())
    (finished_run / "run.json").write_text(json.dumps(run | {"artifacts": ["ticket.json"]}))
    out = pruned(finished_run, tmp_path / "out", 3)
    assert not (out / "ticket.json").exists()
    assert (export(finished_run, tmp_path / "whole") / "ticket.json").exists()
    stock = BertForMaskedLM.from_pretrained(out)
    assert stock.config.num_hidden_layers == 3
    for index, source in enumerate([0, 1, 2]):
        ours, theirs = stock.bert.encoder.layer[index], whole.bert.encoder.layer[source]
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    run = json.loads((out / "run.json").read_text())
    assert "evaluation" not in run
    assert run["clock"]["tokens"] == 4096  # what its training took stays true
    assert run["pruning"]["kept"] == [0, 1, 2]
    card = (out / "README.md").read_text()
    assert "model-index" not in card  # the results of the whole model
    assert "## Losses" not in card
    assert BertForMaskedLM.from_pretrained(finished_run).config.num_hidden_layers == 4


def test_a_pruned_export_can_be_pruned_again(finished_run, tmp_path):
    once = pruned(finished_run, tmp_path / "once", 3)
    twice = pruned(once, tmp_path / "twice", 1)
    run = json.loads((twice / "run.json").read_text())
    assert run["pruning"]["layers"] == 3
    assert run["pruning"]["before"]["layers"] == 4
    assert BertForMaskedLM.from_pretrained(twice).config.num_hidden_layers == 1


@pytest.fixture
def _few_steps(monkeypatch):
    """Scores are not learnt for long."""
    monkeypatch.setattr(layer_choice, "STEPS", 5)


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("strategy", ["search", "data_driven"])
def test_layers_are_chosen_by_a_text(tokenizer, tmp_path, strategy):
    deep(tmp_path / "checkpoint-9", tokenizer)
    find = partial(pruner_of, depth=2, strategy=strategy, text=text(tmp_path))
    out = export(tmp_path / "checkpoint-9", tmp_path / "out", pruner_of=find)
    run = json.loads((out / "run.json").read_text())
    assert run["pruning"]["strategy"] == strategy
    assert len(run["pruning"]["kept"]) == BertForMaskedLM.from_pretrained(out).config.num_hidden_layers == 2
    assert run["pruning"]["chosen_by"]


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("strategy", ["search", "data_driven"])
def test_by_default_the_text_is_that_of_the_run(finished_run, tmp_path, record, tokenizer, strategy):
    data = {"dataset": text(tmp_path), "sequence_length": 16, "validation": 0.2}
    record["recipe"]["data"], record["data"] = data, {}
    (finished_run / "run.json").write_text(json.dumps(record))
    out = pruned(finished_run, tmp_path / "out", 2, strategy)
    assert json.loads((out / "run.json").read_text())["pruning"]["strategy"] == strategy
    if strategy == "search":
        deep(finished_run / "checkpoint-9", tokenizer)  # a checkpoint knows it by the folder it is in
        assert pruned(finished_run / "checkpoint-9", tmp_path / "other", 2, strategy).is_dir()


def test_an_electra_is_pruned_and_its_generator_is_not(tokenizer, tmp_path):
    config = config_for("electra", **SIZES, generator_size=0.5)
    torch.manual_seed(0)
    model_for(config).save_pretrained(tmp_path / "checkpoint-3")
    tokenizer.save_pretrained(tmp_path / "checkpoint-3")
    out = pruned(tmp_path / "checkpoint-3", tmp_path / "out", 2)
    assert ElectraConfig.from_pretrained(out).num_hidden_layers == 2
    assert ElectraForMaskedLM.from_pretrained(out / "generator").config.num_hidden_layers == 4
    bert = BertModel.from_pretrained(pruned(tmp_path / "checkpoint-3", tmp_path / "bert", 2, as_bert=True))
    assert bert.config.num_hidden_layers == 2
    with pytest.raises(EffptError, match="a `ElectraForPreTraining` makes none; use `every_other`"):
        pruned(tmp_path / "checkpoint-3", tmp_path / "searched", 2, "search")


def test_a_model_that_has_never_read_a_mask_is_not_asked_to_fill_any(tokenizer, tmp_path):
    torch.manual_seed(0)
    McBertForPreTraining(McBertConfig(**SIZES, nota_token_id=60)).save_pretrained(tmp_path / "checkpoint-3")
    tokenizer.save_pretrained(tmp_path / "checkpoint-3")
    with pytest.raises(EffptError, match="pre-trained by `mcbert` has never read the mask token; use `every_other`"):
        pruned(tmp_path / "checkpoint-3", tmp_path / "out", 2, "search")


@pytest.mark.parametrize(
    ("depth", "strategy", "says"),
    [
        (0, "every_other", "A depth of 0 cannot be had of a model with 2 layers"),
        (3, "every_other", "A depth of 3 cannot be had of a model with 2 layers; choose 1 to 2"),
        (1, "random", "no strategy `random`"),
        (1, "search", "does not say what text its run held out"),
        (1, "data_driven", "does not say what text its run held out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(checkpoint, tmp_path, monkeypatch, depth, strategy, says):
    """The checkpoint has four layers, of which two run: it has not grown yet."""

    def load(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(EffptBertForMaskedLM, "from_pretrained", load)
    with pytest.raises(EffptError, match=says):
        pruned(checkpoint, tmp_path / "out", depth, strategy)
    assert not (tmp_path / "out").exists()


def test_text_that_nothing_would_read_is_refused(checkpoint, tmp_path):
    find = partial(pruner_of, depth=1, strategy="every_other", text=text(tmp_path))
    with pytest.raises(EffptError, match="`every_other` chooses layers without text"):
        export(checkpoint, tmp_path / "out", pruner_of=find)


def test_text_that_is_not_there_is_refused(checkpoint, tmp_path):
    find = partial(pruner_of, depth=1, strategy="search", text=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(EffptError, match=r"nowhere\.jsonl"):
        export(checkpoint, tmp_path / "out", pruner_of=find)
