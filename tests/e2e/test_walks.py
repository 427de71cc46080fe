"""Three walks of people who have just come, each as a script: what they type, and what they then have in hand."""

import json
import random
import re
import runpy
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, Trainer, pipeline

from hf_effpt.cli.main import main
from hf_effpt.comparison import run_launcher
from hf_effpt.core import registry
from hf_effpt.core.registry import METHODS
from tests.e2e.test_examples import FORKING
from tests.e2e.test_own_method import CODE

SUBJECTS = "Die Bäckerin,Der Gärtner,Das Mädchen,Die Ärztin,Der König,Die Bürgermeisterin".split(",")
VERBS = "öffnet,schließt,verkauft,trägt,grüßt,sucht".split(",")
OBJECTS = "die große Tür,den süßen Kuchen,das alte Gemälde,die grünen Äpfel,den kühlen Fluss,das Fräulein".split(",")


@pytest.fixture
def german(tmp_path):
    """A folder of German text, in which objects follow from verbs."""
    folder, generator = tmp_path / "texte", random.Random(3)
    folder.mkdir()
    for number in range(24):
        sentences = []
        for _ in range(60):
            place = generator.randrange(6)
            sentences.append(f"{generator.choice(SUBJECTS)} {VERBS[place]} {OBJECTS[place]}.")
        (folder / f"{number}.txt").write_text(" ".join(sentences), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_folder_of_german_text_becomes_filled_masks_and_sentence_vectors(german, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = "--data.vocab_size 256 --data.lowercase false --data.sequence_length 32 --data.validation 0.1"
    settings += " --model.backbone modernbert --training.per_device_train_batch_size 8 --training.learning_rate 5e-3"
    settings += " --training.budget 40steps --training.report_to none --training.output_dir modell"
    assert main(["doctor", "texte"]) in (0, 1)  # 1: it has found something, here that there is little text
    assert main(["pretrain", "tiny", "--data.dataset", "texte", *settings.split()]) == 0
    assert "unigram floor" in capsys.readouterr().out

    fill = pipeline("fill-mask", "modell")
    (best, *_) = fill("Der König trägt die grünen [MASK].")
    words = {word.strip(".") for text in (*SUBJECTS, *OBJECTS) for word in text.split()} | {*VERBS, "."}
    assert best["token_str"].removeprefix("##") in words or any(best["token_str"].strip("#") in one for one in words)

    model = SentenceTransformer("modell")  # which takes the mean of the tokens' vectors
    vectors = model.encode(["Die Ärztin grüßt den König.", "Die Ärztin grüßt den König.", "Das alte Gemälde."])
    assert vectors.shape == (3, 128)
    near, far = abs(vectors[0] - vectors[1]).max(), abs(vectors[0] - vectors[2]).max()
    assert near < 1e-5 < far
    model.save("saetze")
    assert abs(SentenceTransformer("saetze").encode("Das alte Gemälde.") - vectors[2]).max() < 1e-5


SCRIPT = """
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments
from transformers import DataCollatorForLanguageModeling

from tests import tiny


model = BertForMaskedLM(BertConfig(**tiny.SHAPE))
args = TrainingArguments("out", max_steps=60, per_device_train_batch_size=4, learning_rate=3e-3, use_cpu=True,
                         report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1)
trainer = Trainer(model, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer(),
                  data_collator=DataCollatorForLanguageModeling(tiny.tokenizer(), mlm_probability=0.15))
trainer.train()
trainer.save_model()
"""
# What a reader of README changes in it: four names, and the methods.
CHANGES = {
    "from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments": (
        "from hf_effpt import EffptBertConfig, EffptBertForMaskedLM, EffptTrainer, EffptTrainingArguments"
    ),
    "BertForMaskedLM(BertConfig(**tiny.SHAPE))": (
        "EffptBertForMaskedLM(EffptBertConfig(**tiny.SHAPE, methods={'stacking': {'depth': 1}}))"
    ),
    "= TrainingArguments(": "= EffptTrainingArguments(",
    "= Trainer(": "= EffptTrainer(",
}


def test_methods_come_into_an_existing_script_by_four_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = SCRIPT
    for old, new in CHANGES.items():
        assert old in changed
        changed = changed.replace(old, new)
    found = {}
    for name, code in {"stock": SCRIPT, "with a method": changed}.items():
        Path(f"{name}.py").write_text(code)
        found[name] = runpy.run_path(f"{name}.py")["trainer"]
        # what it leaves is loaded by people who have never heard of this package
        model = AutoModelForMaskedLM.from_pretrained("out")
        assert type(model).__module__ == "transformers.models.bert.modeling_bert"
        assert model.config.num_hidden_layers == 4
        assert model.config.architectures == ["BertForMaskedLM"]
    assert type(found["stock"]) is Trainer
    assert [event["method"] for event in found["with a method"].model.config.events] == ["stacking"] * 2
    for trainer in found.values():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 60
        assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.slow
def test_an_own_method_is_compared_with_two_others(tmp_path, capsys, monkeypatch):
    """The method that CONTRIBUTING.md shows, known to all processes by `--import`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_launcher, "subprocess", FORKING)
    monkeypatch.setenv(registry.IMPORTS, "")
    monkeypatch.syspath_prepend(tmp_path)
    Path("resting.py").write_text(CODE)
    Path("text").mkdir()
    for number in range(20):
        words = random.Random(number).choices([f"w{i}" for i in range(50)], k=200)
        Path("text", f"{number}.txt").write_text(" ".join(words))
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    plain = {
        "model": shape,
        "data": {"dataset": "text", "sequence_length": 32, "vocab_size": 256, "validation": 0.1},
        "training": {"output_dir": "out", "per_device_train_batch_size": 4},
    }
    for name, methods in {
        "plain": {}, "layerdrop": {"layerdrop": {"p": 0.5}}, "resting": {"resting": {"until": 0.5}}
    }.items():  # fmt: skip
        Path(f"{name}.yaml").write_text(json.dumps(plain | {"methods": methods}))  # JSON is YAML
    recipes = ["plain.yaml", "resting.yaml", "layerdrop.yaml"]
    words = ["--budget", "8steps", "--seeds", "1", "--fractions", "1", "--import", "resting", "--out", "report"]
    try:
        assert main(["compare", *recipes, *words]) == 0
    finally:
        METHODS.pop("resting", None)
    arms = json.loads(Path("report/report.json").read_text())["arms"]
    assert [arm["name"] for arm in arms] == ["plain", "resting", "layerdrop"]
    losses = [arm["runs"][0]["held_out_loss"] for arm in arms]
    assert len(set(losses)) == 3  # each method did something of its own
    assert "resting" in Path("report/report.md").read_text()
    assert re.search(r"resting", capsys.readouterr().out)
