"""From a trained model to one that anybody loads from the Hub with nothing but `transformers`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from hf_effpt.data.packing import pack
from hf_effpt.data.tokenizer_training import train_tokenizer
from hf_effpt.hub.export import export
from hf_effpt.hub.push import push
from hf_effpt.models import EffptBertConfig, EffptBertForMaskedLM
from hf_effpt.training.arguments import EffptTrainingArguments
from hf_effpt.training.trainer import EffptTrainer
from tests import local_hub as server

hub = server.local_hub

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew potions from old books".split()
TEXT = "the old wizards brew"
STRANGER = """
import json, sys
sys.modules["hf_effpt"] = None  # importing it now fails
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("org/first")
model, report = AutoModelForMaskedLM.from_pretrained("org/first", output_loading_info=True)
inputs = tokenizer(sys.argv[1], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
    hidden = AutoModel.from_pretrained("org/first")(**inputs).last_hidden_state
classifier = AutoModelForSequenceClassification.from_pretrained("org/first", num_labels=3)
print(json.dumps({
    "class": type(model).__name__,
    "misfits": sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]),
    "logits": logits.tolist(),
    "hidden": list(hidden.shape),
    "labels": classifier.num_labels,
    "card": ModelCard.load("org/first").data.to_dict(),
    "settings": [model.config.pad_token_id, tokenizer.mask_token, tokenizer.is_fast],
}))
"""


@pytest.fixture
def trainer(tmp_path):
    """A trainer that has trained for two steps, with a checkpoint, and saved what it exports."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index in range(40):
        words = [WORDS[(index * step) % len(WORDS)] for step in range(1, 40)]
        (corpus / f"{index}.txt").write_text(" ".join(words) + ".\n")
    tokenizer = train_tokenizer(str(corpus), vocab_size=256)
    data = pack(str(corpus), tokenizer, sequence_length=16, validation=0.1, cache_dir=str(tmp_path / "cache"))
    config = EffptBertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        methods={"stacking": {"depth": 2, "at": [0.5]}, "layerdrop": {"p": 0.2}},
    )
    args = EffptTrainingArguments(
        output_dir=str(tmp_path / "first"),
        budget="2steps",
        per_device_train_batch_size=4,
        save_steps=1,
        hub_model_id="org/first",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    trainer = EffptTrainer(
        EffptBertForMaskedLM(config),
        args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return trainer


def logits_here(trainer) -> torch.Tensor:
    inputs = trainer.processing_class(TEXT, return_tensors="pt")
    with torch.no_grad():
        return trainer.model.eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


def test_a_stranger_loads_what_was_pushed(hub, trainer, tmp_path):
    url = push(trainer.args.output_dir, "org/first")
    environment = {**os.environ, **hub.environment(tmp_path / "stranger")}
    environment.pop("PYTHONPATH", None)
    environment.pop("HF_TOKEN")  # the repository is public
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STRANGER, TEXT],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["class"] == "BertForMaskedLM"
    assert seen["misfits"] == []
    torch.testing.assert_close(torch.tensor(seen["logits"]), logits_here(trainer), rtol=0, atol=1e-6)
    assert seen["hidden"] == [1, torch.tensor(seen["logits"]).shape[1], 32]
    assert seen["labels"] == 3
    assert seen["settings"] == [0, "[MASK]", True]
    assert seen["card"]["library_name"] == "transformers"
    assert seen["card"]["pipeline_tag"] == "fill-mask"
    assert {"stacking", "layerdrop"} <= set(seen["card"]["tags"])
    result = seen["card"]["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == round(trainer.evaluation["held_out_loss"], 4)
    assert hub.repos["org/first"].branches["main"].oid in url


def test_the_trainers_own_push_to_hub(hub, trainer):
    assert (trainer.args.output_dir / Path("README.md")).read_text().count("\n# first\n") == 1
    trainer.push_to_hub(license="mit", language="en", finetuned_from="org/bert", tasks="fill-mask")
    files = hub.repos["org/first"].branches["main"].files
    assert not [path for path in files if path.startswith("checkpoint-") or "optimizer" in path]
    assert json.loads(files["config.json"])["model_type"] == "bert"
    model = AutoModelForMaskedLM.from_pretrained("org/first")
    assert type(model) is BertForMaskedLM
    tokenizer = AutoTokenizer.from_pretrained("org/first")
    with torch.no_grad():
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits
    torch.testing.assert_close(logits, logits_here(trainer), rtol=0, atol=1e-6)
    card = ModelCard.load("org/first")
    assert 'from_pretrained("org/first")' in card.text
    assert "grew from 2 to 4 layers" in card.text
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", ["en"], "org/bert")
    for told in ("| Documents | 36 |", "| Sequence length | 16 |", "Inputs of more than 16 tokens"):
        assert told in card.text


def test_the_last_checkpoint_exports_to_the_same_model(hub, trainer, tmp_path):
    root = trainer.args.output_dir
    out = export(f"{root}/checkpoint-2", tmp_path / "stock")
    push(out, "org/again", private=True)
    here = BertForMaskedLM.from_pretrained(root).state_dict()
    there = AutoModelForMaskedLM.from_pretrained("org/again").state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    early = export(f"{root}/checkpoint-1", tmp_path / "early")
    record = json.loads((early / "run.json").read_text())
    assert record["clock"]["steps"] == 1
    assert "evaluation" not in record
