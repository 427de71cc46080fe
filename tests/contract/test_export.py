"""Invariant 7: a run leaves a stock model with the same function, which a process without the package loads."""

import subprocess
import sys

import pytest
import torch
from transformers import BertForMaskedLM

from tests import tiny

from .settings import ledgers, name_of

LOAD = """
import sys, torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert type(model).__module__.startswith("transformers."), type(model)
    probe = torch.load(folder + "/probe.pt")
    assert torch.allclose(model(probe["ids"]).logits, probe["logits"], atol=1e-6)
    encoder, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}  # a masked LM trains no pooler
    assert not missing and not report["mismatched_keys"], report
    assert torch.allclose(encoder(probe["ids"]).last_hidden_state, probe["hidden"], atol=1e-6)
    assert AutoTokenizer.from_pretrained(folder)("w1 w2").input_ids == [2, 6, 7, 3]
assert not any(name.startswith("hf_effpt") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs, and one stopped in the middle of its growths, each with the outputs of its training model."""
    folders = []
    for ledger in [{}, *ledgers()]:
        for budget in ("8steps", "4steps"):
            folder = tmp_path_factory.mktemp(name_of(ledger))
            trainer = tiny.trainer(folder, ledger)
            if budget == "4steps":
                trainer.add_callback(tiny.StopAfter(4))
            trainer.train()
            trainer.save_model()
            if trainer.model.config.layer_widths:  # with code of its own; a stock model is dense
                trainer.model.export(dense=True).save_pretrained(folder)
            model = trainer.model.eval()
            ids = torch.randint(5, tiny.VOCAB, (3, tiny.LENGTH))
            with torch.no_grad():
                probe = {"ids": ids, "logits": model(ids).logits, "hidden": model.bert(ids).last_hidden_state}
            torch.save(probe, folder / "probe.pt")
            folders.append((folder, model))
    return folders


def test_export_is_stock_and_equal(runs):
    for folder, model in runs:
        stock = BertForMaskedLM.from_pretrained(folder)
        probe = torch.load(folder / "probe.pt")
        assert torch.allclose(stock(probe["ids"]).logits, probe["logits"], atol=1e-6)
        assert stock.config.num_hidden_layers == len(model.config.layer_order or range(4))
        assert stock.cls.predictions.decoder.weight is stock.bert.embeddings.word_embeddings.weight
        assert "methods" not in stock.config.to_dict()


def test_some_export_is_shallower_than_its_target(runs):
    assert {BertForMaskedLM.from_pretrained(folder).config.num_hidden_layers for folder, _ in runs} == {2, 4}


def test_loads_in_a_clean_process(runs):
    folders = [str(folder) for folder, _ in runs]
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, cwd=folders[0])
    assert done.returncode == 0, done.stderr


def test_exporting_leaves_the_training_model_as_it_is():
    model = tiny.model({"stacking": {"depth": 1, "at": [0.5, 0.6]}})
    before = tiny.weights(model)
    order = model.config.layer_order
    exported = model.export()
    assert model.config.layer_order == order
    assert not {p.data_ptr() for p in exported.parameters()} & {p.data_ptr() for p in model.parameters()}
    for name, weight in tiny.weights(model).items():
        assert torch.equal(weight, before[name])
