"""What `export` and `push` do with models that have a generator."""

import json

import pytest
import torch
from transformers import AutoModel, BertModel, ElectraForMaskedLM, ElectraForPreTraining, ElectraModel

from hf_effpt.cli.main import main
from hf_effpt.core.errors import EffptError
from hf_effpt.hub.export import export
from hf_effpt.hub.folders import files_of
from tests import tiny

IDS = torch.tensor([[2, 5, 6, 7, 4, 3]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of ELECTRA with embeddings as wide as its layers, its checkpoint kept."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny.trainer(folder, objective="electra", budget="2steps", save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    return folder, trainer.model.eval()


@pytest.mark.parametrize("part", ["", "checkpoint-2"])
def test_both_models_are_exported(run, tmp_path, part):
    folder, model = run
    out = export(folder / part, tmp_path / "stock")
    for place, cls, trained in (
        ("", ElectraForPreTraining, model),
        ("generator", ElectraForMaskedLM, model.generator),
    ):
        stock, report = cls.from_pretrained(out / place, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(stock(IDS).logits, trained(IDS).logits, rtol=0, atol=1e-6)
        assert (out / place / "tokenizer.json").is_file()
    assert json.loads((out / "run.json").read_text())["model"]["stock_class"] == "ElectraForPreTraining"
    assert {"generator/config.json", "generator/model.safetensors", "model.safetensors"} <= set(files_of(out))


@pytest.mark.parametrize("part", ["", "checkpoint-2"])
def test_an_encoder_as_wide_as_its_tables_is_a_bert_too(run, tmp_path, part):
    folder, model = run
    out = export(folder / part, tmp_path / "bert", as_bert=True)
    encoder, report = AutoModel.from_pretrained(out, output_loading_info=True)
    assert type(encoder) is BertModel
    assert not report["unexpected_keys"]
    assert all(name.startswith("pooler.") for name in report["missing_keys"])
    same = ElectraModel.from_pretrained(folder)(IDS).last_hidden_state
    assert torch.equal(BertModel.from_pretrained(out, add_pooling_layer=False)(IDS).last_hidden_state, same)
    torch.testing.assert_close(encoder(IDS).last_hidden_state, model.electra(IDS).last_hidden_state, rtol=0, atol=1e-6)
    assert json.loads((out / "run.json").read_text())["model"]["stock_class"] == "BertModel"
    assert "`BertModel`" in (out / "README.md").read_text()


def test_command_line_exports_as_a_bert(run, tmp_path, capsys):
    assert main(["export", str(run[0]), "--out", str(tmp_path / "bert"), "--as_bert"]) == 0
    assert json.loads((tmp_path / "bert" / "config.json").read_text())["model_type"] == "bert"


def test_what_is_no_bert_is_refused(tmp_path):
    model = tiny.joint(embedding_size=16)
    trainer = tiny.EffptTrainer(
        model, tiny.arguments(tmp_path / "run", budget="2steps"), train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    with pytest.raises(EffptError, match="embeddings of 16 projected to 32, which a BERT does not have"):
        export(tmp_path / "run", tmp_path / "bert", as_bert=True)
    assert not (tmp_path / "bert").exists()
