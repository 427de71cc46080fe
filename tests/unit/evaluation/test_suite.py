import json
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraForPreTraining,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation import blimp as pairs
from hf_effpt.evaluation import finetuning_plan, held_out_text, suite
from hf_effpt.evaluation.blimp import load_pairs
from hf_effpt.evaluation.finetuning_plan import Plan
from hf_effpt.evaluation.protocols import PROTOCOLS
from hf_effpt.evaluation.results_file import Record
from hf_effpt.evaluation.stock_checkpoint import load_pretrained, readable_length
from hf_effpt.evaluation.suite import evaluate, table
from tests import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tiny.model().export().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    (tmp_path / "blimp").mkdir()
    pairs = [
        {
            "sentence_good": f"w{i} w{i + 1}",
            "sentence_bad": f"w{i + 1} w{i}",
            "UID": f"order_{i % 2}",
            "field": "syntax",
        }
        for i in range(8)
    ]
    Dataset.from_list([*pairs, {**pairs[0], "sentence_bad": pairs[0]["sentence_good"]}]).to_parquet(
        tmp_path / "blimp" / "blimp.parquet"
    )
    task = tmp_path / "tasks" / "cola"
    task.mkdir(parents=True)
    for split, count in (("train", 24), ("validation", 12)):
        rows = [{"sentence": f"w{i} w{(i * 7) % 50} w3", "label": i % 2} for i in range(count)]
        Dataset.from_list(rows).to_parquet(task / f"{split}.parquet")
    return tmp_path


def test_everything_at_once(checkpoint, data):
    result = evaluate(checkpoint, ["blimp", "cola"], data=data, seeds=[3], pairs_per_paradigm=3)
    assert set(result["scores"]) == {"blimp/pll_word_l2r-3", "cola/mcc@default"}
    assert result["scores"]["blimp/pll_word_l2r-3"]["n"] == 6
    assert result["finetuning"]["tasks"]["cola/mcc@default"]["seeds"][0]["seed"] == 3
    assert result["average"]["name"] == "average@default"
    score = result["scores"]["blimp/pll_word_l2r-3"]
    assert score["spread"] == result["blimp"]["standard_error"] > 0
    shown = table(result)
    assert "| blimp/pll_word_l2r-3 | 0." in shown
    assert "average@default:" in shown
    json.dumps(result, allow_nan=False)


def test_ties_are_said(checkpoint, data):
    result = evaluate(checkpoint, ["blimp"], data=data)
    assert result["scores"]["blimp/pll_word_l2r"]["notes"] == ["1 ties, counted one half"]
    assert "- blimp/pll_word_l2r: 1 ties" in table(result)


def test_an_undefined_score_is_shown_as_such(checkpoint, data, monkeypatch):
    found = {"tasks": {"stsb/pearson@default": {"value": None, "statistic": "mean", "standard_deviation": None,
             "seeds": [{}], "notes": ["undefined for 1 of 1 seeds: constant"]}},
             "average": {"name": "average@default", "value": None,
                         "note": "no average: undefined are stsb/pearson"}}  # fmt: skip
    monkeypatch.setattr(Plan, "run", lambda *_, **__: found)
    shown = table(evaluate(checkpoint, ["cola"], data=data))
    assert "| stsb/pearson@default | undefined | - | 1 |" in shown
    assert "undefined for 1 of 1 seeds" in shown
    assert "| average@default | undefined |" in shown


def test_what_is_wrong_is_said_before_anything_is_measured(checkpoint, data, monkeypatch):
    for name in ("blimp", "evaluate_loss"):
        monkeypatch.setattr(suite, name, lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(Plan, "run", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(EffptError, match=r"no known task \(did you mean `cola`"):
        evaluate(checkpoint, ["blimp", "colla"], data=data)
    with pytest.raises(EffptError, match="BLiMP needs data"):
        evaluate(checkpoint, ["blimp"])
    with pytest.raises(EffptError, match="no protocol `glue`"):
        evaluate(checkpoint, ["cola"], data=data, protocol="glue")
    with pytest.raises(EffptError, match=r"config\.json"):
        evaluate(data, ["cola"], data=data)
    with pytest.raises(EffptError, match="No tasks were named"):
        evaluate(checkpoint, [])
    for wrong, message in (({"pairs_per_paradigm": 0}, "pairs_per_paradigm=0"), ({"seeds": 0}, "`seeds`"),
                           ({"lora": 0}, "rank of LoRA")):  # fmt: skip
        with pytest.raises(EffptError, match=message):
            evaluate(checkpoint, ["blimp", "cola"], data=data, **wrong)


def test_a_task_is_loaded_once_and_its_notes_said_once(checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Plan, "run", lambda *_, **__: {"tasks": {}, "average": {}})
    rows = [{"text": f"w{i}", "label": i % 2} for i in range(20)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    evaluate(checkpoint, str(tmp_path / "mine.jsonl"), protocol=PROTOCOLS["default"])
    assert caplog.text.count("text is read from text") == 1


def test_a_checkpoint_without_its_tokenizer_is_refused_for_any_task(checkpoint, data, tmp_path):
    BertForMaskedLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "bare")
    for task in ("loss", "blimp", "cola"):
        with pytest.raises(EffptError, match="has no tokenizer"):
            evaluate(tmp_path / "bare", task, data=data)


def test_an_encoder_without_its_head_has_no_loss(tmp_path, data):
    BertModel(tiny.config().stock(), add_pooling_layer=False).save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(EffptError, match="lacks weights of its pre-training head"):
        evaluate(tmp_path / "m", ["blimp"], data=data)


def test_pairs_as_they_are_published(tmp_path, monkeypatch):
    pair = {"sentence_good": "x", "sentence_bad": "y", "UID": "u", "field": "f"}
    (tmp_path / "a.jsonl").write_text(json.dumps({**pair, "one_prefix_prefix": "The", "pairID": "0"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"pairID": 0, "UID": "v", **pair, "lexically_identical": True}))
    found = load_pairs(tmp_path)
    assert found.column_names == ["sentence_good", "sentence_bad", "UID", "field"]
    assert len(found) == 2
    (tmp_path / "c.jsonl").write_text(json.dumps({"UID": "u"}))
    with pytest.raises(EffptError, match=r"c\.jsonl: The pairs have the columns UID but not"):
        load_pairs(tmp_path)
    (tmp_path / "c.jsonl").write_text("no JSON")
    with pytest.raises(EffptError, match=r"c\.jsonl cannot be read as jsonl"):
        load_pairs(tmp_path)
    (tmp_path / "c.jsonl").write_text(json.dumps({**pair, "field": {"of": "x"}}))
    with pytest.raises(EffptError, match=r"c\.jsonl.*must be texts"):
        load_pairs(tmp_path)
    with pytest.raises(EffptError, match=r"nowhere has no blimp"):
        load_pairs("nowhere")
    with pytest.raises(EffptError, match="cannot be downloaded"):  # there is no network here
        load_pairs("hub")
    monkeypatch.setattr(pairs, "get_dataset_config_names", lambda _: (_ for _ in ()).throw(OSError()))
    with pytest.raises(EffptError, match=r"cannot be downloaded \(OSError\)"):
        load_pairs("hub")


def run_on(tmp_path, corpus, objective="mlm", **changes):
    """A run of three steps on some text, trained at a rate of masks that is not the one of evaluation."""
    from hf_effpt.pretraining import pretrain
    from hf_effpt.recipe.recipe import Recipe

    data = {"dataset": str(corpus), "sequence_length": 32, "vocab_size": 256, "validation": 0.2,
            "mlm_probability": 0.3, **changes}  # fmt: skip
    training = {"output_dir": str(tmp_path / "out"), "budget": "3steps", "per_device_train_batch_size": 8,
                "report_to": "none", "disable_tqdm": True, "use_cpu": True}  # fmt: skip
    model = {"size": "tiny", "hidden_size": 32, "objective": objective}
    return pretrain(Recipe.load({"model": model, "data": data, "training": training}))


def documents(number):
    return [" ".join(f"word{(at * 7 + i * i) % 40}" for i in range(200)) for at in range(number)]


@pytest.mark.parametrize("isolated", [False, True])
def test_the_loss_of_an_export_is_that_of_its_run(tmp_path, isolated):
    """Found again through what the run has recorded: column, split, length and isolation, and 15 % of masks."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split, texts in (("train", ["word1 " * 300]), ("test", documents(30))):
        lines = [json.dumps({"text": "something else", "body": text}) for text in texts]
        (corpus / f"{split}.jsonl").write_text("\n".join(lines))
    result = run_on(tmp_path, corpus, isolate_documents=isolated, text_column="body", split="test")
    found = evaluate(result.output_dir)
    assert found["scores"]["held_out_loss"]["value"] == pytest.approx(result.held_out_loss, abs=1e-5)
    assert found["scores"]["held_out_loss"]["notes"] == []
    assert found["loss"]["unigram_floor"] == pytest.approx(result.floor, abs=1e-9)
    assert "unigram floor of the held-out loss" in table(found)


def test_text_that_has_changed_since_the_run_or_is_not_here_is_not_held_out_anew(tmp_path, monkeypatch, caplog):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, text in enumerate(documents(30)):
        (corpus / f"{number:02}.txt").write_text(text)
    folder = run_on(tmp_path, corpus).output_dir
    (corpus / "0.txt").write_text("a document that moves all others by one")
    with pytest.raises(EffptError, match=r"changed since the run.*--text"):
        evaluate(folder)
    (corpus / "0.txt").unlink()
    record = json.loads((folder / "run.json").read_text())
    fingerprint = record["data"].pop("fingerprint")
    (folder / "run.json").write_text(json.dumps(record))
    assert "did not record which text" in evaluate(folder)["scores"]["held_out_loss"]["notes"][0]

    asked = []
    monkeypatch.setattr(held_out_text, "open_corpus", lambda name, **_: asked.append(name))
    record["data"]["fingerprint"] = fingerprint
    for missing in ("corpus", "texts/mine.jsonl", "./corpus/part", "/nowhere/corpus"):
        record["recipe"]["data"]["dataset"] = missing
        (folder / "run.json").write_text(json.dumps(record))
        with pytest.raises(EffptError, match=r"nothing is here.*folder that the run was started in.*--text"):
            evaluate(folder)
    assert asked == []
    monkeypatch.setattr(
        held_out_text, "open_corpus", lambda name, **_: (_ for _ in ()).throw(EffptError("no network"))
    )
    record["recipe"]["data"]["dataset"] = "org/name"
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(EffptError, match="no network"):
        evaluate(folder)
    assert "org/name is no folder here; asking the Hub" in caplog.text


def text_of(path, column="text", words="w1 w2 w3 w4 w5"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({column: f"{words} w{i} " * 9}) for i in range(8)))
    return path


def test_other_text_is_read_from_its_validation_split_and_the_column_of_the_run(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    settings = {"text_column": "body", "sequence_length": 16}
    (folder / "run.json").write_text(json.dumps({"recipe": {"data": settings}}))
    text_of(tmp_path / "text" / "train.jsonl", "body", "w9 w9 w9 w9 w9")
    held = text_of(tmp_path / "text" / "validation.jsonl", "body")
    by_folder, by_file = (evaluate(folder, text=str(name)) for name in (held.parent, held))
    assert by_folder["loss"]["held_out_loss"] == by_file["loss"]["held_out_loss"]
    assert by_folder["loss"]["unigram_floor"] is None
    assert f"on {held.parent}, not on what a run" in by_folder["scores"]["held_out_loss"]["notes"][0]


@pytest.mark.parametrize(("settings", "length"), [({}, 32), ({"sequence_length": 16}, 16)])
def test_rows_of_other_text_are_no_longer_than_the_model_reads(checkpoint, tmp_path, settings, length):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "run.json").write_text(json.dumps({"recipe": {"data": settings}}))
    model, tokenizer = load_pretrained(folder)
    text = str(text_of(tmp_path / "a.jsonl"))
    rows = held_out_text.held_out_text(folder, tokenizer, text, readable_length(model, tokenizer)).rows
    assert rows.features["input_ids"].length == length


def test_a_roberta_reads_fewer_tokens_than_it_has_positions():
    shape = {**tiny.SHAPE, "max_position_embeddings": 20, "pad_token_id": 1}
    assert readable_length(RobertaForMaskedLM(RobertaConfig(**shape)), tiny.tokenizer()) == 18
    shape["pad_token_id"] = 0
    assert readable_length(BertForMaskedLM(BertConfig(**shape)), tiny.tokenizer()) == 20


def test_a_half_precision_checkpoint_is_measured_in_float32(checkpoint, tmp_path):
    BertForMaskedLM.from_pretrained(checkpoint).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert load_pretrained(tmp_path)[0].dtype == torch.float32


def test_a_discriminator_has_its_own_score_and_no_loss(tmp_path, data):
    model = ElectraForPreTraining(ElectraConfig(embedding_size=16, **tiny.SHAPE))
    model.save_pretrained(tmp_path / "d")
    tiny.tokenizer().save_pretrained(tmp_path / "d")
    for tasks in (None, ["blimp", "loss"]):
        with pytest.raises(EffptError, match=r"a discriminator has no masked-token loss; use --tasks blimp\.$"):
            evaluate(tmp_path / "d", tasks, data=data)
    (tmp_path / "d" / "generator").mkdir()
    with pytest.raises(EffptError, match=r"measure its generator: effpt evaluate \S*d/generator --tasks loss"):
        evaluate(tmp_path / "d", "loss")
    assert list(evaluate(tmp_path / "d", "blimp", data=data)["scores"]) == ["blimp/discriminator"]


def test_a_diverged_model_costs_only_the_scores_that_it_lacks(checkpoint, data, tmp_path):
    model = BertForMaskedLM.from_pretrained(checkpoint)
    model.bert.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    tiny.tokenizer().save_pretrained(tmp_path / "nan")
    text = str(text_of(tmp_path / "a.jsonl"))
    result = evaluate(tmp_path / "nan", ["loss", "blimp", "cola"], data=data, text=text, seeds=[0])
    for name in ("held_out_loss", "blimp/pll_word_l2r", "cola/mcc@default"):
        assert result["scores"][name]["value"] is None
        assert "diverged" in result["scores"][name]["notes"][-1]
    json.dumps(result, allow_nan=False)
    assert "| blimp/pll_word_l2r | undefined | - | 0 |" in table(result)


def test_a_second_call_keeps_scores_and_does_not_repeat_seeds(checkpoint, data, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    out, real, trained = tmp_path / "evaluation.json", finetuning_plan.finetune, []

    def measured(tasks, seeds=2, lora=None):
        record = Record(out, folder)
        result = evaluate(folder, tasks, data=data, seeds=seeds, lora=lora, record=record)
        record.save(result)
        return json.loads(out.read_text())

    def ended(*given):
        trained.append(given[3])
        return real(*given)

    def stop_at_one(*given):
        if given[3] == 1:
            raise KeyboardInterrupt
        return ended(*given)

    monkeypatch.setattr(finetuning_plan, "finetune", stop_at_one)
    with pytest.raises(KeyboardInterrupt):
        measured(["blimp", "cola"])
    left = json.loads(out.read_text())
    assert (left["partial"], list(left["scores"]), len(left["finished"])) == (True, ["blimp/pll_word_l2r"], 1)
    monkeypatch.setattr(finetuning_plan, "finetune", ended)
    whole = measured(["cola"])
    assert trained == [0, 1]  # the seed that was done is not done again
    assert set(whole["scores"]) == {"blimp/pll_word_l2r", "cola/mcc@default"}
    assert (whole["partial"], "blimp" in whole) == (False, True)
    assert measured(["cola"])["scores"] == whole["scores"]
    assert trained == [0, 1]
    measured(["cola"], [0], 2)  # other adapters, other results
    assert trained == [0, 1, 0]
    rows = [{"sentence": f"w{i} w3", "label": i % 2} for i in range(12)]
    Dataset.from_list(rows).to_parquet(data / "tasks" / "cola" / "validation.parquet")
    measured(["cola"], [0])  # and other data
    assert trained == [0, 1, 0, 0]
    model = BertForMaskedLM.from_pretrained(folder)
    model.cls.predictions.bias.data += 1
    model.save_pretrained(folder)
    assert set(measured(["cola"], [0])["scores"]) == {"cola/mcc@default"}  # nothing of another model
    assert trained == [0, 1, 0, 0, 0]


def test_a_file_that_holds_something_else_is_not_written_over(checkpoint, tmp_path):
    for content in ("my notes", "[1]", '{"scores": [1]}'):
        (tmp_path / "notes").write_text(content)
        with pytest.raises(EffptError, match="name another file by `--out`"):
            Record(tmp_path / "notes", checkpoint)


def test_a_model_of_no_run_needs_text(checkpoint):
    with pytest.raises(EffptError, match="--text"):
        evaluate(checkpoint)
    assert held_out_text.run_of(checkpoint) == {}
    assert isinstance(load_pretrained(checkpoint)[0], BertForMaskedLM)


def test_the_loss_of_a_generator_is_measured_on_what_its_run_held_out(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, text in enumerate(documents(30)):
        (corpus / f"{number:02}.txt").write_text(text)
    result = run_on(tmp_path, corpus, "electra")
    found = evaluate(result.output_dir / "generator", "loss")
    score = found["scores"]["held_out_loss"]
    assert score["value"] == pytest.approx(result.evaluation["generator_loss"], rel=0.02)  # its masks are of mlm
    assert score["notes"] == []
    assert found["loss"]["unigram_floor"] == pytest.approx(result.evaluation["unigram_floor"], abs=1e-9)


@pytest.mark.parametrize(("objective", "said"), [("mcbert", True), ("all_tokens_mlm", True), ("mlm", False)])
def test_a_model_that_never_read_the_mask_token_is_measured_with_a_note(checkpoint, data, tmp_path, objective, said):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "run.json").write_text(json.dumps({"evaluation": {"objective": objective}}))
    result = evaluate(folder, ["loss", "blimp"], data=data, text=str(text_of(tmp_path / "a.jsonl")))
    for name in ("held_out_loss", "blimp/pll_word_l2r"):
        notes = " ".join(result["scores"][name]["notes"])
        assert (f"pre-trained by `{objective}`, it has never read the mask token" in notes) == said
