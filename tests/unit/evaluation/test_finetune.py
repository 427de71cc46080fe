import builtins
import json
import logging

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
)

from hf_effpt.core.errors import EffptError
from hf_effpt.data import corpus_of, train_tokenizer
from hf_effpt.evaluation import finetune as module
from hf_effpt.evaluation import finetuning_plan
from hf_effpt.evaluation.finetune import finetune
from hf_effpt.evaluation.finetuning_plan import plan_suite
from hf_effpt.evaluation.glue_metrics import Score
from hf_effpt.evaluation.protocols import PROTOCOLS, Protocol, Settings
from hf_effpt.evaluation.tasks import load_task
from tests import tiny

QUICK = Settings(learning_rate=3e-3, epochs=4, batch_size=8, max_length=16)


@pytest.fixture
def folder(tmp_path):
    """A pre-trained checkpoint of a stock class."""
    return checkpoint(tmp_path / "model", BertForMaskedLM(BertConfig(**tiny.SHAPE)))


def checkpoint(path, model):
    with module._quiet_loading():
        model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def write(path, split, rows):
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def data(tmp_path):
    """Tasks that a small model learns: the first word tells the class."""
    words = [f"w{1 + 2 * (i % 2)} w{40 + i % 7}" for i in range(64)]
    root = tmp_path / "data"
    for split in ("train", "validation"):
        write(root / "cola", split, [{"sentence": text, "label": i % 2} for i, text in enumerate(words)])
        pairs = [{"sentence1": text, "sentence2": "w9", "label": i % 2} for i, text in enumerate(words)]
        write(root / "rte", split, pairs[:16])
        numbers = [{**pair, "label": 4.0 * pair["label"] + 0.01 * i} for i, pair in enumerate(pairs)]
        write(root / "stsb", split, numbers)
    for split in ("train", "validation_matched", "validation_mismatched"):
        rows = [{"premise": text, "hypothesis": "w8", "label": i % 3} for i, text in enumerate(words[:24])]
        write(root / "mnli", split, rows)
    return root


def test_learns_and_reports(folder, data, capsys, caplog):
    before = sorted(path.name for path in folder.iterdir())
    result = finetune(folder, load_task("cola", data), QUICK, seed=0)
    assert result["scores"] == {"mcc": {"value": 1.0, "note": None}}
    assert (result["seed"], result["steps"], result["truncated"]) == (0, 32, 0)
    assert (result["train_examples"], result["validation_examples"]) == (64, 64)
    assert result["majority"] == 0.5
    assert result["seconds"] > 0
    assert sorted(path.name for path in folder.iterdir()) == before
    assert capsys.readouterr() == ("", "")
    assert caplog.text == ""


def test_a_seed_repeats_and_another_differs(folder, data, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "score", lambda metric, predicted, labels: seen.append(predicted) or Score(0.0))
    for seed in (0, 0, 1):
        finetune(folder, load_task("stsb", data), Settings(**{**vars(QUICK), "epochs": 1}), seed)
    assert (seen[0] == seen[2]).all()  # two metrics a run
    assert (seen[0] != seen[4]).any()


def test_regression(folder, data):
    scores = finetune(folder, load_task("stsb", data), QUICK, seed=0)["scores"]
    assert scores["pearson"]["value"] > 0.9
    assert scores["spearman"]["value"] > 0.6


@pytest.mark.parametrize(
    ("config", "architecture"),
    [(RobertaConfig, RobertaForMaskedLM), (ElectraConfig, ElectraForPreTraining)],
    ids=["roberta", "electra"],
)
def test_other_encoders(tmp_path, data, config, architecture):
    shape = {**tiny.SHAPE, "pad_token_id": 0, "embedding_size": 16}
    path = checkpoint(tmp_path / "other", architecture(config(**shape)))
    settings = Settings(**{**vars(QUICK), "layer_decay": 0.9})
    assert finetune(path, load_task("cola", data), settings, seed=0)["scores"]["mcc"]["value"] == 1.0


def test_dropout_is_the_protocols_where_it_has_one_and_else_the_checkpoints_own(tmp_path, data):
    bare = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path = checkpoint(tmp_path / "bare", BertForMaskedLM(BertConfig(**tiny.SHAPE, **bare)))
    task = load_task("cola", data)
    for dropout, expected in ((None, 0.0), (0.1, 0.1)):
        _, model, notes = module._load(path, task, dropout)
        found = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
        assert len(found) > 3 * 4
        assert set(found) == {expected}
        assert model.config.attention_probs_dropout_prob == expected
        assert notes == []
    shape = {"vocab_size": tiny.VOCAB, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "dropout": 0.0}
    path = checkpoint(tmp_path / "distil", DistilBertForMaskedLM(DistilBertConfig(**shape)))
    _, model, notes = module._load(path, task, 0.2)
    assert (model.config.dropout, model.config.attention_dropout, notes) == (0.2, 0.2, [])
    path = checkpoint(tmp_path / "modern", tiny.masked_lm("modernbert").export())
    _, model, notes = module._load(path, task, 0.2)
    assert (model.config.mlp_dropout, model.config.attention_dropout, notes) == (0.2, 0.2, [])
    shape = {"vocab_size": tiny.VOCAB, "n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
    path = checkpoint(tmp_path / "gpt2", GPT2LMHeadModel(GPT2Config(**shape)))
    _, _, notes = module._load(path, task, 0.2)
    assert "a `gpt2` has no dropout known here to set to 0.2" in notes[0]


def test_a_protocol_by_size_is_that_of_the_model(folder, data):
    assert plan_suite(folder, ["cola"], "glue8_electra", data=data).protocol.name == "glue8_electra_small"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 1024}))
    plan = plan_suite(folder, ["cola"], "glue8_electra", data=data)
    assert (plan.protocol.name, plan.parts[0].settings.learning_rate) == ("glue8_electra_large", 5e-5)


def test_two_tasks_of_one_name_are_refused(folder, data, tmp_path):
    for inside in ("a", "b"):
        write(tmp_path / inside, "mine", [{"text": f"w{i}", "label": i % 2} for i in range(20)])
    both = [str(tmp_path / inside / "mine.jsonl") for inside in ("a", "b")]
    with pytest.raises(EffptError, match=r"a/mine\.jsonl` and `.*b/mine\.jsonl` are both called `mine`"):
        plan_suite(folder, both, "default", data=None)
    (data / "mnli").rename(data / "mnli_subset")
    with pytest.raises(EffptError, match="`mnli` and `mnli_subset` are both called `mnli_subset`"):
        plan_suite(folder, ["mnli", "mnli_subset"], "default", data=data)


def test_examples_that_do_not_fit_are_cut_and_counted(folder, tmp_path):
    rows = [{"text": " ".join(["w5"] * (30 if i < 3 else 6)), "label": i % 2} for i in range(8)]
    for split in ("train", "validation"):
        write(tmp_path / "mine", split, rows)
    task = load_task(str(tmp_path / "mine"))
    exactly = Settings(epochs=1, max_length=8)  # 6 words and 2 special tokens
    assert finetune(folder, task, exactly, seed=0)["truncated"] == 6
    result = finetune(folder, task, Settings(epochs=1, max_length=64), seed=0)  # the model reads 32: 30 and 2
    assert result["truncated"] == 0
    assert result["notes"] == ["examples are cut to 32 tokens, all the model can read, not 64"]


@pytest.mark.parametrize("says", [True, False])
def test_pairs_have_segments_whatever_the_tokenizer_says(says):
    """A tokenizer that gives segments only when asked, as byte-level ones of earlier runs."""
    trained = train_tokenizer(corpus_of(["w1 w2 w3"]), vocab_size=320, kind="bpe")
    trained.model_input_names = ["input_ids", *(["token_type_ids"] if says else []), "attention_mask"]
    rows = Dataset.from_dict({"one": ["w1 w2"], "other": ["w3"], "label": [0]})
    models = {"bert": BertForSequenceClassification(BertConfig(**tiny.SHAPE))}
    models["distil"] = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=tiny.VOCAB, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    )
    (example,), _ = module._encode(rows, ("one", "other"), trained, 16, module.has_segments(models["bert"]) or None)
    first = example["input_ids"].index(trained.sep_token_id) + 1
    assert example["token_type_ids"] == [0] * first + [1] * (len(example["input_ids"]) - first)
    (example,), _ = module._encode(rows, ("one", "other"), trained, 16, module.has_segments(models["distil"]) or None)
    assert ("token_type_ids" in example) is says


def test_divergence_is_a_note_not_a_number(folder, data):
    model = BertForMaskedLM.from_pretrained(folder)
    model.bert.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    checkpoint(folder, model)
    scores = finetune(folder, load_task("cola", data), Settings(epochs=1), seed=0)["scores"]
    assert scores["mcc"] == {"value": None, "note": "diverged"}


@pytest.mark.parametrize("lora", [None, 2])
def test_finetune_makes_accumulation_safe(folder, data, monkeypatch, lora):
    seen = []
    init = Trainer.__init__

    def record(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append((self.model_accepts_loss_kwargs, self.args.per_device_train_batch_size))

    monkeypatch.setattr(Trainer, "__init__", record)
    settings = Settings(epochs=1, batch_size=8, gradient_accumulation_steps=4)
    assert finetune(folder, load_task("cola", data), settings, 0, lora)["steps"] == 8
    assert seen == [(False, 2)]


def test_lora_learns_and_its_scores_say_so(folder, data):
    settings = Settings(**{**vars(QUICK), "learning_rate": 1e-2, "epochs": 6})
    protocol = Protocol("quick", "this test", settings=settings, seeds=1)
    suite = plan_suite(folder, ["cola"], protocol, data=data, lora=4).run()
    assert suite["lora"] == 4
    assert suite["tasks"]["cola/mcc@quick+lora4"]["value"] > 0.9
    assert suite["average"]["name"] == "average@quick+lora4"
    assert "+lora4" in suite["average"]["note"]


def test_lora_without_peft_says_what_to_install(folder, data, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EffptError, match=r"hf_effpt\[lora\]"):
        plan_suite(folder, ["cola"], "default", data=data, lora=4)


def test_suite(folder, data):
    protocol = Protocol("quick", "this test", settings=Settings(epochs=1, max_length=16), statistic="median", seeds=2)
    seen = []
    plan = plan_suite(folder, ["cola", "mnli"], protocol, data=data)
    suite = plan.run(lambda name, result: seen.append((name, result["seed"])))
    assert seen == [("mnli", 0), ("mnli", 1), ("cola", 0), ("cola", 1)]
    assert list(suite["tasks"]) == ["mnli/accuracy@quick", "mnli/accuracy_mm@quick", "cola/mcc@quick"]
    score = suite["tasks"]["mnli/accuracy@quick"]
    assert score["value"] == pytest.approx(sum(seed["value"] for seed in score["seeds"]) / 2)
    assert suite["average"]["value"] is not None
    json.dumps(suite, allow_nan=False)
    one = plan_suite(folder, ["cola"], protocol, data=data, seeds=[5]).run()
    assert one["tasks"]["cola/mcc@quick"]["notes"][0] == "seeds: 1, where the protocol has 2"
    assert "cola has seeds: 1, where the protocol has 2" in one["average"]["note"]
    assert suite["average"] == {**suite["average"], "name": "average@quick"}
    assert "seeds" not in suite["average"]["note"]


def test_tasks_that_start_from_mnli_do(folder, data, monkeypatch):
    starts, real = [], module._load

    def load(path, task, dropout):
        tokenizer, model, notes = real(path, task, dropout)
        starts.append((task.name, model.base_model.embeddings.word_embeddings.weight.clone(), model.num_labels))
        return tokenizer, model, notes

    monkeypatch.setattr(module, "_load", load)
    settings = Settings(**{**vars(QUICK), "epochs": 1})
    protocol = Protocol("quick", "this test", settings=settings, seeds=1, from_mnli=frozenset({"rte"}))
    suite = plan_suite(folder, ["cola", "rte", "mnli"], protocol, data=data).run()
    embeddings = {name: weight for name, weight, _ in starts}
    assert [name for name, *_ in starts] == ["mnli", "cola", "rte"]
    assert starts[2][2] == 2
    assert torch.equal(embeddings["mnli"], embeddings["cola"])
    assert not torch.equal(embeddings["mnli"], embeddings["rte"])
    assert "started from the encoder fine-tuned on mnli" in suite["tasks"]["rte/accuracy@quick"]["notes"]
    plan, finished = plan_suite(folder, ["rte", "mnli"], protocol, data=data), {}
    first = plan.run(finished=finished)
    starts.clear()
    assert plan.run(finished=finished) == first
    assert starts == []
    finished.pop(next(key for key in finished if key.startswith("rte")))
    plan.run(finished=finished)
    assert [name for name, *_ in starts] == ["mnli", "rte"]  # whose encoder was not kept


def test_suite_refuses_before_it_trains(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning_plan, "finetune", lambda *args: pytest.fail("trained"))
    (tmp_path / "empty").mkdir()
    for changes, message in [
        ({"protocol": "glue8_mosaic", "tasks": ["rte"]}, "rte start from the model fine-tuned on MNLI"),
        ({"protocol": "glue9_cramming", "tasks": list(PROTOCOLS["glue9_cramming"].reported)}, "no task `qqp`"),
        ({"protocol": "defualt"}, "did you mean `default`"),
        ({"seeds": 0}, "`seeds`"),
        ({"lora": 0}, "rank of LoRA is 0"),
        ({"model_dir": tmp_path / "empty"}, r"no config\.json"),
    ]:
        given = {"model_dir": folder, "tasks": ["cola"], "protocol": "default", **changes}
        with pytest.raises(EffptError, match=message):
            plan_suite(data=data, **given)


def test_a_folder_that_is_no_encoder_with_its_tokenizer(folder, data, tmp_path):
    task = load_task("cola", data)
    model = BertForMaskedLM(BertConfig(**{**tiny.SHAPE, "num_hidden_layers": 2}))
    with module._quiet_loading():
        model.save_pretrained(tmp_path / "bare")
    with pytest.raises(EffptError, match="has no tokenizer"):
        finetune(tmp_path / "bare", task, QUICK, 0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(EffptError, match="lacks 16 weights of the encoder"):
        finetune(folder, task, QUICK, 0)


def test_only_the_report_of_new_heads_is_silenced(monkeypatch, caplog):
    reporting = logging.getLogger("transformers.modeling_utils")
    # by itself: whether it passes records on differs between versions of transformers
    monkeypatch.setattr(reporting, "handlers", [caplog.handler])
    monkeypatch.setattr(reporting, "propagate", False)
    with caplog.at_level("WARNING", logger=reporting.name):
        with module._quiet_loading():
            reporting.warning("Bert LOAD REPORT from: x")
            reporting.warning("something else")
        reporting.warning("Bert LOAD REPORT from: y")
    assert [record.getMessage() for record in caplog.records] == ["something else", "Bert LOAD REPORT from: y"]


def test_protocols_are_stock_arguments(folder, tmp_path):
    for protocol in PROTOCOLS.values():
        for settings in (protocol.settings, *protocol.task_settings.values()):
            if settings is not None:
                args = module._arguments(settings, 3, str(tmp_path))
                assert args.seed == 3
                assert args.get_warmup_steps(1000) == round(1000 * settings.warmup)
                assert args.lr_scheduler_type == settings.scheduler
                assert (args.learning_rate, args.num_train_epochs) == (settings.learning_rate, settings.epochs)
                assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (*settings.betas, settings.eps)
                assert (args.weight_decay, args.max_grad_norm) == (settings.weight_decay, settings.max_grad_norm)
