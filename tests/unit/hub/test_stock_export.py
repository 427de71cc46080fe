import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from hf_effpt.core.errors import EffptError
from hf_effpt.hub.export import export
from hf_effpt.models import EffptBertForMaskedLM

IDS = torch.tensor([[2, 5, 6, 7, 4, 3]])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_computes_what_the_training_model_computes(checkpoint, tmp_path):
    out = export(checkpoint, tmp_path / "stock")
    stock, report = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert type(stock) is BertForMaskedLM
    assert stock.config.num_hidden_layers == 2  # it has not grown yet
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    trained = EffptBertForMaskedLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(IDS).logits, trained(IDS).logits, rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(out)("the cat")["input_ids"] == [2, 5, 6, 3]
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_export_records_where_it_comes_from(checkpoint, tmp_path):
    out = export(checkpoint, tmp_path / "stock")
    run = json.loads((out / "run.json").read_text())
    assert run["exported_from"] == "unfinished/checkpoint-2"
    assert run["clock"] == {"steps": 2, "unit": "steps", "budget": 4.0, "tokens": 2048}
    assert run["history"] == [{"loss": 4.2, "step": 2}]
    assert run["ledger"]["methods"]["layerdrop"] == {"p": 0.1}
    assert run["recipe"]["training"] == {"learning_rate": 0.0005}
    assert run["model"]["stock_class"] == "BertForMaskedLM"
    assert "unfinished/checkpoint-2" in (out / "README.md").read_text()


def test_an_earlier_checkpoint_does_not_inherit_the_final_results(checkpoint, record, tmp_path):
    (checkpoint.parent / "run.json").write_text(json.dumps(record))
    run = json.loads((export(checkpoint, tmp_path / "early") / "run.json").read_text())
    assert "evaluation" not in run
    assert run["environment"] == record["environment"]
    record["clock"]["steps"] = 2
    (checkpoint.parent / "run.json").write_text(json.dumps(record))
    run = json.loads((export(checkpoint, tmp_path / "last") / "run.json").read_text())
    assert run["evaluation"] == record["evaluation"]


def test_tokenizer_of_the_run_folder_is_used_when_the_checkpoint_has_none(checkpoint, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).rename(checkpoint.parent / name)
    out = export(checkpoint, tmp_path / "stock")
    assert AutoTokenizer.from_pretrained(out)("mat")["input_ids"] == [2, 9, 3]


def test_a_finished_run_is_copied_without_its_checkpoints(finished_run, tmp_path):
    (finished_run / "checkpoint-4").mkdir()
    out = export(finished_run, tmp_path / "copy")
    assert (out / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()
    assert not {"checkpoint-4", "training_args.bin", "notes.txt", ".incoming"} & {path.name for path in out.iterdir()}
    assert json.loads((out / "run.json").read_text())["exported_from"] == "first"


def test_an_earlier_export_and_an_unfinished_run_may_be_written_into(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "stock")
    export(checkpoint, tmp_path / "stock")
    assert export(checkpoint, checkpoint.parent) == checkpoint.parent
    assert BertForMaskedLM.from_pretrained(checkpoint.parent).config.num_hidden_layers == 2


def test_other_peoples_files_are_refused_and_kept(checkpoint, finished_run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    for out, says in (
        (tmp_path / "photos", "no earlier export"),
        (finished_run, "holds a finished run"),
        (checkpoint, "no earlier export"),
    ):
        before = contents(out)
        with pytest.raises(EffptError, match=says):
            export(checkpoint, out)
        assert contents(out) == before


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(EffptError, match=r"nowhere' is not a folder; name a folder such as OUT/checkpoint-900"):
        export(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EffptError, match=r"has no config\.json"):
        export(tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_a_corrupt_checkpoint_is_refused_and_the_last_whole_one_offered(checkpoint, tmp_path, damaged):
    for step in (4, 10, 12):
        later = checkpoint.with_name(f"checkpoint-{step}")
        later.mkdir()
        for path in checkpoint.iterdir():
            (later / path.name).write_bytes(path.read_bytes())
    for step in (10, 12):
        broken = checkpoint.with_name(f"checkpoint-{step}") / damaged
        broken.write_bytes(broken.read_bytes()[:-10])
    with pytest.raises(EffptError, match=r"checkpoint-12' is corrupt or half-written .* whole .*checkpoint-4'"):
        export(checkpoint.with_name("checkpoint-12"), tmp_path / "out")
    with pytest.raises(EffptError, match=r"unfinished' has no config\.json.* whole .*checkpoint-4'"):
        export(checkpoint.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        ({"num_hidden_layers": 3}, r"encoder\.layer\.3"),
        ({"num_hidden_layers": 5, "methods": {}}, r"encoder\.layer\.4"),
        ({"intermediate_size": 96}, r"layer\.0\.intermediate"),
    ],
)
def test_weights_that_do_not_belong_to_the_config_are_refused(checkpoint, tmp_path, change, misfit):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(EffptError, match=misfit):
        export(checkpoint, tmp_path / "out")


def test_a_tokenizer_too_large_for_the_model_is_refused(checkpoint, tokenizer, tmp_path):
    tokenizer.add_tokens(["surplus"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(EffptError, match="65 tokens but the model only 64 embeddings"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_does_not_load_back_is_not_saved(checkpoint, tmp_path, monkeypatch):
    first = export(checkpoint, tmp_path / "out")
    before = contents(first)
    save = BertForMaskedLM.save_pretrained

    def save_wrong(model, folder):
        model.bert.embeddings.LayerNorm.weight.data += 1
        save(model, folder)
        model.bert.embeddings.LayerNorm.weight.data -= 1

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", save_wrong)
    with pytest.raises(EffptError, match=r"different bert\.embeddings\.LayerNorm\.weight"):
        export(checkpoint, first)
    assert contents(first) == before


def test_a_stock_model_from_elsewhere_has_nothing_to_export(finished_run, tmp_path):
    (finished_run / "run.json").unlink()
    with pytest.raises(EffptError, match="nothing to export"):
        export(finished_run, tmp_path / "out")
