import json
import logging
import random
import re

import pytest
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.data import pydoc
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.packing import facts
from hf_effpt.data.tokenizer_training import train_tokenizer
from hf_effpt.evaluation import document_scores
from hf_effpt.evaluation.held_out_text import held_out_text
from hf_effpt.preparation import prepare_data, prepare_tokenizer
from hf_effpt.pretraining import RunResult, claim, pretrain
from hf_effpt.recipe.recipe import Recipe

ELECTRA = {
    "objective": "electra",
    "held_out_loss": 0.41617,
    "floor": 0.42537,
    "generator_loss": 5.766,
    "unigram_floor": 6.1747,
}


def summary(evaluation):
    return RunResult("out", Clock("steps", 1), evaluation).summary()


def test_a_loss_is_told_against_the_floor_of_its_objective():
    said = summary(ELECTRA)
    assert "Held-out loss 0.4162 nats a token, the prior entropy is 0.4254 (0.0092 below)." in said
    assert "Its generator's loss is 5.7660 nats a masked token, the unigram floor is 6.1747 (0.4087 below)." in said
    older = summary({"held_out_loss": 6.5, "unigram_floor": 6.0})
    assert "6.5000 nats a masked token, the unigram floor is 6.0000 (0.5000 above; it needs a longer budget" in older
    assert "generator" not in older


def test_what_methods_have_cost_is_told():
    accounts = {"selection": {"s_flops": 0.3, "text": "To judge a row cost 0.3 of learning from it."}, "other": {}}
    said = RunResult("out", Clock("steps", 1), {}, accounts).summary()
    assert "To judge a row cost 0.3 of learning from it." in said


def test_what_is_held_out_is_told():
    aside = {"documents": 12, "tokens": 3456, "bytes": 9999, "asked": 0.01, "share": 0.0098, "of": 1200}
    data = {"documents_by": "lines", "held_out": aside, "doubles": 3}
    said = RunResult("out", Clock("steps", 1), {}, {}, {"data": data}).summary()
    assert "Documents of .txt files were cut by `lines`" in said
    assert "Held out were 12 documents of 1,200, 0.98% of the text, 3,456 tokens." in said
    assert "3 training documents equal held-out ones" in said
    own = {"held_out": {"documents": 12, "tokens": 3456, "bytes": 9999, "dataset": "own/"}, "doubles": 0}
    said = RunResult("out", Clock("steps", 1), {}, {}, {"data": own}).summary()
    assert "Held out were 12 documents of own/, 3,456 tokens." in said
    assert "equal" not in said
    drawn = [{"dataset": "a", "documents": 3000, "weight": 0.75}, {"dataset": "b", "documents": 1000}]
    said = RunResult("out", Clock("steps", 1), {}, {}, {"data": {"sources": drawn}}).summary()
    assert "Documents were drawn: 3,000 from a (share 0.75), 1,000 from b." in said


def test_a_cut_of_files_is_refused_where_none_is_cut(corpus, tmp_path):
    with pytest.raises(EffptError, match=r"`data\.documents` is 'lines', but must be left out, since .*corpus\.jsonl"):
        prepare_data(recipe(corpus, tmp_path, "--data.documents", "lines"))


def test_without_held_out_text_nothing_is_said_of_losses():
    assert "loss" not in summary({})
    result = RunResult("out", Clock("steps", 1), ELECTRA)
    assert (result.held_out_loss, result.floor) == (0.41617, 0.42537)


def test_summary_names_other_ways_to_run_the_model():
    found = {
        "objective": "mlm",
        "held_out_loss": 5.5,
        "floor": 6.0,
        "unigram_floor": 6.0,
        "held_out_loss_hardened": 5.75,
    }
    assert "Held-out loss other than as exported: 5.7500 by `hardened`." in summary(found)
    del found["held_out_loss_hardened"]
    assert "otherwise" not in summary(found)


@pytest.fixture
def corpus(tmp_path):
    """Forty documents, and as many doubles of the first ten, whose white space differs."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(80)]
    texts = [" ".join(draw.choices(words, k=120)) for _ in range(40)]
    texts += [texts[number % 10].replace(" ", "  ") for number in range(40)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def recipe(corpus, out, *flags):
    sections = {
        "model": {"size": "tiny", "hidden_size": 32},
        "data": {"dataset": str(corpus), "sequence_length": 32, "vocab_size": 256, "validation": 0.1},
        "training": {"output_dir": str(out), "budget": "2steps", "per_device_train_batch_size": 4,
                     "report_to": "none", "disable_tqdm": True, "use_cpu": True},
    }  # fmt: skip
    return Recipe.load(sections, flags)


EXACT = ("--data.select.deduplicate", "exact")


def test_selection_leaves_tokenizer_and_held_out_rows_as_they_are(corpus, tmp_path):
    text, tokenizer, rows = prepare_data(recipe(corpus, tmp_path))
    other_text, other_tokenizer, selected = prepare_data(recipe(corpus, tmp_path, *EXACT))
    assert other_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert list(other_text.texts()) == list(text.texts())
    assert selected["validation"]["input_ids"][:] == rows["validation"]["input_ids"][:]
    assert facts(selected["train"])["documents"] < 0.6 * facts(rows["train"])["documents"]
    assert (facts(selected["train"])["doubles"], facts(rows["train"])["doubles"] > 0) == (0, True)
    assert facts(selected["train"])["select"]["unselected_fingerprint"] == facts(rows["train"])["fingerprint"]


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("split", "test", "splits"),
        ("streaming", "true", "a download from the Hub"),
        ("text_column", "body", "columns"),
    ],
)
def test_settings_that_local_text_does_not_heed_are_refused(tmp_path, caplog, key, value, what):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one two three\n\n" * 40)
    flags = (f"--data.{key}", value, "--data.validation", "0")
    for source in (tmp_path / "texts", f"[{tmp_path / 'texts' / 'a.txt'}]"):
        asked = recipe(source, tmp_path, *flags, "--data.dataset", str(source))
        with pytest.raises(EffptError, match=rf"`data.{key}` is .* only with a `dataset` with {what}, unlike"):
            prepare_data(asked)
    prepare_data(asked, strict=False)
    assert f"`data.{key}` is" in caplog.text


def test_the_column_of_validation_text_alone_is_heeded(tmp_path, corpus):
    (tmp_path / "a.txt").write_text("one two three\n\n" * 40)
    (tmp_path / "b.jsonl").write_text('{"body": "four five six seven eight"}\n' * 20)
    flags = ("--data.text_column", "body", "--data.validation", str(tmp_path / "b.jsonl"))
    *_, rows = prepare_data(recipe(tmp_path / "a.txt", tmp_path, *flags))
    assert facts(rows["validation"])["documents"] == 20


def test_all_prepared_data_are_in_the_folder_that_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_EFFPT_CACHE", "/proc/none")
    prose = "This is the text of a module, and it is in English as far as that can be told from the words in it. "
    (tmp_path / "module.py").write_text("".join(f'def f{n}():\n    """{n} {prose * 4}"""\n' for n in range(9)))
    for dataset in (str(corpus), "builtin:pydoc"):
        monkeypatch.setattr(pydoc, "_sources", lambda: [("module", "module", tmp_path / "module.py")])
        prepare_data(recipe(dataset, tmp_path, "--data.cache_dir", str(tmp_path / "named"), "--data.validation", "0"))
    names = {path.name.split("-")[0] for path in (tmp_path / "named").iterdir() if path.suffix != ".lock"}
    assert names >= {"packed", "tokenizer", "pydoc"}


def test_validation_may_be_a_list_and_alone_may_be_cut(tmp_path, corpus):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"a line of {name} with eight words in it\n" * 12)
    flags = ("--data.documents", "lines", "--data.validation", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    asked = recipe(corpus, tmp_path, *flags)
    assert Recipe.load(asked.resolved()).data.held_out == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    _, tokenizer, rows = prepare_data(asked)
    record = {"recipe": asked.resolved(), "data": facts(rows["train"])}
    (tmp_path / "run.json").write_text(json.dumps(record))
    again = held_out_text(tmp_path, tokenizer, None, 512)
    assert again.rows["input_ids"][:] == rows["validation"]["input_ids"][:]
    held_out = facts(rows["train"])["held_out"]
    assert (held_out["documents"], held_out["documents_by"]) == (24, "lines")
    said = RunResult("out", Clock("steps", 1), {}, {}, {"data": facts(rows["train"])}).summary()
    assert "Held out were 24 documents of" in said
    assert "cut by `lines`, " in said
    with pytest.raises(EffptError, match=r"data\.documents.*no \.txt file to cut"):
        prepare_data(recipe(corpus, tmp_path, "--data.documents", "lines"))


def test_a_checkpoint_reads_as_long_inputs_as_before(corpus, tmp_path):
    """Rows are of 32 tokens; the checkpoint has 48 positions."""
    shape = {"vocab_size": 320, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    shape |= {"intermediate_size": 8, "max_position_embeddings": 48}
    BertForMaskedLM(BertConfig(**shape)).save_pretrained(tmp_path / "checkpoint")
    tokenizer = train_tokenizer(open_corpus(str(corpus)), vocab_size=320)
    for own, announced in ((512, 48), (40, 40), (16, 32)):
        tokenizer.model_max_length = own
        tokenizer.save_pretrained(tmp_path / "checkpoint")
        sections = recipe(corpus, tmp_path).resolved()
        sections["model"] = {"from": str(tmp_path / "checkpoint")}
        sections["data"].pop("vocab_size")
        prepared = prepare_tokenizer(Recipe.load(sections), open_corpus(str(corpus)))
        assert prepared.model_max_length == announced


def test_a_damaged_tokenizer_of_the_cache_is_trained_anew(corpus, tmp_path):
    asked = recipe(corpus, tmp_path)
    tokenizer = prepare_tokenizer(asked, open_corpus(str(corpus)))
    (path,) = (tmp_path / "cache").glob("tokenizer-*/tokenizer.json")
    for listed in (None, {path.name: path.stat().st_size}):  # of this version, and of older ones
        path.write_bytes(bytes(path.stat().st_size))
        if listed:
            (path.parent / ".contents.json").write_text(json.dumps(listed))
        assert prepare_tokenizer(asked, open_corpus(str(corpus))).get_vocab() == tokenizer.get_vocab()


def test_validation_text_of_its_own_leaves_all_documents_but_its_doubles_to_select_from(corpus, tmp_path):
    lines = corpus.read_text().splitlines()
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join([lines[3].upper().replace("TEXT", "text"), lines[30], '{"text": "new"}']))
    flags = ("--data.validation", str(own))
    *_, rows = prepare_data(recipe(corpus, tmp_path, *flags))
    assert facts(rows["train"])["documents"] == 80
    assert facts(rows["train"])["doubles"] == 6
    *_, selected = prepare_data(recipe(corpus, tmp_path, *EXACT, *flags))
    assert facts(selected["train"])["documents"] == 38
    assert facts(selected["train"])["doubles"] == 0
    assert facts(selected["validation"])["documents"] == 3
    with pytest.raises(EffptError, match=r"is text to train on.*both read .*corpus\.jsonl"):
        prepare_data(recipe(corpus, tmp_path, "--data.validation", str(corpus)))


def test_a_run_on_what_a_run_before_it_judged_says_so_in_its_record(corpus, tmp_path, monkeypatch, caplog):
    small = pretrain(recipe(corpus, tmp_path / "small")).output_dir
    calls, real = [], document_scores.document_losses
    monkeypatch.setattr(document_scores, "document_losses", lambda *parts: (calls.append(1), real(*parts))[1])
    flags = [*EXACT, "--data.select.model", str(small), "--data.select.keep", "0.5", "--data.select.band", "middle"]
    chosen = recipe(corpus, tmp_path / "out", *flags)
    assert Recipe.load(chosen.resolved()) == chosen
    with caplog.at_level(logging.INFO, logger="hf_effpt"):
        pretrain(chosen)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    said = run["data"]["select"]
    assert {"deduplicate": "exact", "model": str(small), "keep": 0.5, "band": "middle"}.items() <= said.items()
    assert 60 < said["documents"] < 80
    assert said["kept"] == run["data"]["documents"]
    assert 0.2 < said["kept"] / said["documents"] < 0.35
    assert 0 < said["seconds"] < 300
    assert f"{said['kept']} of {said['documents']} documents kept" in caplog.text
    assert run["recipe"]["data"]["select"] == chosen.data.select
    assert run["clock"]["steps"] == 2
    *_, again = prepare_data(chosen)
    assert facts(again["train"])["select"] == said
    assert calls == [1]


def test_what_tokenizer_and_positions_are_worth_is_told(corpus, tmp_path):
    """The rows are of 32 tokens and the model has 512 positions; the corpus has no accents to lose."""
    result = pretrain(recipe(corpus, tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 32
    assert result.facts["tokenizer"]["strip_accents"] is True
    said = result.summary()
    assert "Its tokenizer has accents stripped, and 0.000% of the characters are unknown to it." in said
    assert "Its rows were of 32 tokens, so that its further 480 positions are untrained." in said
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for name, value in (("Accents", "stripped"), ("Unknown characters", "0.000%"), ("Untrained positions", "480")):
        assert re.search(rf"^\| {name}.*\| {value} \|$", card, re.MULTILINE), name


def test_a_tokenizer_keeps_accents_if_the_recipe_says_so(corpus, tmp_path):
    chosen = recipe(corpus, tmp_path, "--data.strip_accents", "false")
    _, tokenizer, _ = prepare_data(chosen)
    _, other, _ = prepare_data(recipe(corpus, tmp_path, "--data.strip_accents", "true"))
    assert [each.backend_tokenizer.normalizer.normalize_str("É") for each in (tokenizer, other)] == ["é", "e"]
    assert Recipe.load(chosen.resolved()) == chosen


def test_a_recipe_of_a_run_that_was_cut_short_is_offered_back(corpus, tmp_path):
    """Nothing is offered where the copy says the same; what a killed process left beside it is removed."""
    out, settings = tmp_path / "out", ("--training.save_steps", "1", "--training.budget", "2steps")
    (out / ".recipe.yaml-killed").mkdir(parents=True)
    pretrain(recipe(corpus, out, *settings))
    assert not list(out.glob(".*"))
    other = recipe(corpus, out, *settings, "--training.seed", "7")
    with pytest.raises(EffptError, match=r"`training\.seed: 42`") as refusal:
        claim(out, other, resume=True)
    assert "cp " not in str(refusal.value)
    text = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(text[: text.index("training:")])
    with pytest.raises(EffptError, match=r"`training.seed: None`.* `cp .*checkpoint-2/recipe.yaml .*out/recipe.yaml`"):
        claim(out, recipe(corpus, out, *settings), resume=True)


def test_a_run_is_not_resumed_with_another_selection(corpus, tmp_path):
    recipe(corpus, tmp_path, *EXACT).save(tmp_path / "recipe.yaml")
    claim(tmp_path, recipe(corpus, tmp_path, *EXACT), resume=True)
    near = ["--data.select.deduplicate", "near", "--data.select.similarity"]
    for flags in ([], [*near, "0.8"]):
        with pytest.raises(EffptError, match=r"has `data\.select: {'deduplicate': 'exact'}`, but the recipe now says"):
            claim(tmp_path, recipe(corpus, tmp_path, *flags), resume=True)
    recipe(corpus, tmp_path, *near, "0.8").save(tmp_path / "recipe.yaml")
    claim(tmp_path, recipe(corpus, tmp_path, *near[:2]), resume=True)  # the usual similarity
    with pytest.raises(EffptError, match=r"has `data\.select: .*'similarity': 0\.8.* now says .*0\.7"):
        claim(tmp_path, recipe(corpus, tmp_path, *near, "0.7"), resume=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.select.kept", "0.5"], "Section `data.select` has no key `kept`: did you mean `keep`"),
        (["--data.select", "near"], "`data.select` is 'near', but must be a mapping"),
        (["--data.select", "{}"], "which selects nothing"),
        (["--data.select.keep", "half"], "`data.select.keep` is 'half': invalid float value"),
        (["--data.select.deduplicate", "nearly"], "`data.select.deduplicate` is 'nearly': invalid choice"),
        (["--data.select.keep", "0.5", "--data.select.model", "m"], "must be one of low, middle, high"),
        ([*EXACT, "--data.streaming", "true"], "`data.streaming` is True, but must be false with `data.select`"),
    ],
)
def test_a_selection_that_cannot_be_is_refused_with_the_recipe(corpus, tmp_path, flags, message):
    with pytest.raises(EffptError) as error:
        recipe(corpus, tmp_path, *flags)
    assert message in str(error.value)


def test_a_model_that_is_not_there_is_missed_before_any_work(corpus, tmp_path):
    flags = ["--data.select.deduplicate", "semantic", "--data.select.model", str(tmp_path / "missing")]
    with pytest.raises(EffptError, match=r"`data\.select\.model` is .*missing.* has no config\.json"):
        prepare_data(recipe(corpus, tmp_path, *flags))
    assert not list((tmp_path / "cache").glob("tokenizer-*"))


def test_the_command_line_adds_to_the_selection_of_a_recipe(corpus, tmp_path):
    near = recipe(corpus, tmp_path, "--data.select", "{deduplicate: near, similarity: 0.7}")
    assert near.data.select == {"deduplicate": "near", "similarity": 0.7}
    changed = Recipe.load(near.resolved(), ["--data.select.similarity", "0.9"])
    assert changed.data.selection.similarity == 0.9
    assert Recipe.load(near.resolved(), ["--data.select", "null"]).data.selection is None


@pytest.mark.parametrize("place", ["", "out", "deep/out"])
def test_a_run_never_writes_into_its_text(corpus, tmp_path, place):
    """It would be read as text when the run is resumed."""
    texts = tmp_path / "texts"
    texts.mkdir()
    corpus.rename(texts / "corpus.jsonl")
    for sources in (str(texts), [str(texts), "builtin:pydoc"]):
        own = Recipe.load(recipe(texts, texts / place).resolved() | {"data": {"dataset": sources}})
        with pytest.raises(EffptError, match="whose files are read as text"):
            claim(texts / place, own, False)
    claim(tmp_path / "out", recipe(texts, tmp_path / "out"), False)
    claim(texts / "out", recipe(texts / "corpus.jsonl", texts / "out"), False)
