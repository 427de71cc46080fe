"""From raw text to a stock checkpoint, through the same doors as a user, and every wrong turn on the way."""

import json
import random
import shutil

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, ModernBertForMaskedLM

from hf_effpt import METHODS, EffptError, Recipe, evaluate, pretrain, train_tokenizer
from hf_effpt.cli.main import main
from hf_effpt.data.corpus import corpus_of
from hf_effpt.pretraining import prepare_data
from hf_effpt.training.checkpoints import checkpoints_in
from tests import tiny

WORDS = (
    "a the small large model layer token mask learns reads skips grows stacks drops from to of and with text".split()
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sixty documents of a few hundred words."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(0)
    for number in range(60):
        text = " ".join(generator.choices(WORDS, k=300)) + "."
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def recipe(corpus, out, **sections):
    settings = {
        "model": {"size": "tiny", "num_hidden_layers": 4, "hidden_size": 32},
        "data": {"dataset": str(corpus), "sequence_length": 32, "vocab_size": 256, "validation": 0.1},
        "training": {"output_dir": str(out), "budget": "6steps", "per_device_train_batch_size": 8, "logging_steps": 2,
                     "save_steps": 3, "report_to": "none", "disable_tqdm": True, "use_cpu": True},
    }  # fmt: skip
    for section, changes in sections.items():
        settings[section] = {**settings.get(section, {}), **changes}
    return settings


def continued(source, corpus, out, **data):
    """The recipe of a run from a checkpoint, which has its own vocabulary."""
    settings = recipe(corpus, out, data=data)
    del settings["data"]["vocab_size"]
    return settings | {"model": {"from": str(source)}}


def test_text_becomes_a_stock_checkpoint(corpus, tmp_path):
    result = pretrain(Recipe.load(recipe(corpus, tmp_path / "out", methods={"stacking": {"at": [0.2, 0.5]}})))
    out = tmp_path / "out"
    model = AutoModelForMaskedLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert type(model).__module__.startswith("transformers.")
    assert model(**tokenizer("the model learns", return_tensors="pt")).logits.shape[-1] == 256
    run = json.loads((out / "run.json").read_text())
    assert run["evaluation"]["held_out_loss"] == pytest.approx(result.held_out_loss)
    assert run["evaluation"]["unigram_floor"] < 4
    assert run["clock"]["steps"] == 6
    assert run["ledger"]["events"][-1]["what"] == "grew from 2 to 4 layers by stack"
    assert 40 < run["data"]["documents"] < 60
    assert run["tokenizer"]["unknown_rate"] < 0.05
    assert run["recipe"] == Recipe.load(out / "recipe.yaml").resolved()
    card = (out / "README.md").read_text()
    assert f"{result.held_out_loss:.4f}" in card
    assert METHODS["stacking"].paper.title in card
    assert f"from_pretrained('{out}')" in result.summary()


def test_a_modernbert_begins_at_the_token_frequencies_and_is_trained_further(corpus, tmp_path):
    """On documents kept apart; then from what came of it, with words of its own and another method."""
    model = {"backbone": "modernbert", "local_attention": 8, "start": {"bias": "unigram"}}
    first = pretrain(
        Recipe.load(recipe(corpus, tmp_path / "first", model=model, data={"isolate_documents": True},
                           methods={"layerdrop": {"p": 0.2}}))
    )  # fmt: skip
    assert first.held_out_loss < first.floor + 0.1
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "first")
    assert type(stock) is ModernBertForMaskedLM
    assert stock.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert [stock.config.cls_token_id, stock.config.sep_token_id] == [tokenizer.cls_token_id, tokenizer.sep_token_id]

    (tmp_path / "words.txt").write_text("modelmodel\n")
    settings = continued(tmp_path / "first", corpus, tmp_path / "second", add_tokens=str(tmp_path / "words.txt"))
    settings["methods"] = {"compress": {"depth": 3, "ffn_keep": 0.5}}
    second = pretrain(Recipe.load(settings))
    run = json.loads((tmp_path / "second" / "run.json").read_text())
    assert run["before"]["held_out_loss"] == pytest.approx(first.held_out_loss, abs=0.2)
    assert "Before the first step, as " in second.summary()
    assert run["recipe"]["model"]["from"] == str(tmp_path / "first")
    assert run["model"]["stock_class"] == "PrunedModernBertForMaskedLM"
    assert "modelmodel" in AutoTokenizer.from_pretrained(tmp_path / "second").get_vocab()
    assert main(["export", str(tmp_path / "second"), "--dense", "--out", str(tmp_path / "dense")]) == 0
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "dense")) is ModernBertForMaskedLM


def test_a_run_from_a_checkpoint_is_resumed(corpus, tmp_path):
    pretrain(Recipe.load(recipe(corpus, tmp_path / "first")))
    for name in ("straight", "out"):
        settings = continued(tmp_path / "first", corpus, tmp_path / name)
        pretrain(Recipe.load(settings))
    for name in ("config.json", "model.safetensors", "run.json", "checkpoint-6"):
        (tmp_path / "out" / name).rename(tmp_path / f"gone-{name}")
    pretrain(Recipe.load(settings), resume=True)
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("straight", "out")]
    assert runs[0]["before"] == runs[1]["before"]
    straight, resumed = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("straight", "out"))
    tiny.assert_same_weights(straight, resumed)


def test_a_tokenizer_that_does_not_fit_a_checkpoint_is_refused(corpus, tmp_path, capsys):
    pretrain(Recipe.load(recipe(corpus, tmp_path / "first")))
    for size, said in (
        (320, "has 320 tokens and pads with 0, but the checkpoint"),
        (256, "has other tokens than that"),
    ):
        folder = tmp_path / str(size)
        train_tokenizer(corpus_of(["zebras yodel while quails jump vexed foxes"] * 50), vocab_size=size, out=folder)
        settings = continued(tmp_path / "first", corpus, tmp_path / "out", tokenizer=str(folder))
        with pytest.raises(EffptError, match=said):
            pretrain(Recipe.load(settings))
    with pytest.raises(EffptError, match=r"`data\.add_tokens` is 5, which adds to the vocabulary of a checkpoint"):
        Recipe.load(recipe(corpus, tmp_path / "out", data={"add_tokens": 5}))


@pytest.mark.parametrize("data", [{"isolate_documents": True}, {"whole_word": True}, {"tokenizer_kind": "bpe",
                                                                                     "vocab_size": 320}])  # fmt: skip
def test_data_options(corpus, tmp_path, data):
    result = pretrain(Recipe.load(recipe(corpus, tmp_path / "out", data=data)))
    assert 0 < result.held_out_loss < 8


def test_a_resumed_run_ends_like_the_straight_one(corpus, tmp_path):
    pretrain(Recipe.load(recipe(corpus, tmp_path / "straight")))
    pretrain(Recipe.load(recipe(corpus, tmp_path / "out")))
    for name in ("config.json", "model.safetensors", "run.json", "checkpoint-6"):
        path = tmp_path / "out" / name
        path.rename(tmp_path / f"gone-{name}")
    pretrain(Recipe.load(recipe(corpus, tmp_path / "out")), resume=True)
    straight, resumed = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("straight", "out"))
    for (name, left), (_, right) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(left, right), name


def test_rows_grow_longer_with_the_clock(corpus, tmp_path, caplog):
    """Straight and resumed at the step before the change; both lengths are told of, and later found again."""
    model = {"backbone": "modernbert", "rotary_base": {0: 10_000, 0.6: 160_000}, "local_attention": 8}
    changes = {"model": model, "data": {"sequence_length": {0: 32, 0.6: 128}}, "methods": {"layerdrop": {"p": 0.2}}}
    with caplog.at_level("INFO", logger="hf_effpt"):
        result = pretrain(Recipe.load(recipe(corpus, tmp_path / "straight", **changes)))
    assert [part for record in caplog.records if "rows of" in (part := record.message)] == [
        f"data: {number:,} rows of {length} tokens, from {since} of the clock"
        for number, length, since in (
            (result.facts["data"]["rows"], 32, 0),
            (result.facts["data"]["phases"][0]["rows"], 128, 0.6),
        )
    ]
    pretrain(Recipe.load(recipe(corpus, tmp_path / "out", **changes)))
    for name in ("config.json", "model.safetensors", "run.json", "checkpoint-6"):
        (tmp_path / "out" / name).rename(tmp_path / f"gone-{name}")
    pretrain(Recipe.load(recipe(corpus, tmp_path / "out", **changes)), resume=True)
    straight, resumed = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("straight", "out"))
    tiny.assert_same_weights(straight, resumed)
    assert straight.config.rope_parameters["full_attention"]["rope_theta"] == 160_000
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("straight", "out")]
    run = runs[0]
    assert run["data"]["sequence_length"] == 32
    assert [run["data"]["phases"][0][name] for name in ("since", "sequence_length")] == [0.6, 128]
    assert run["clock"]["tokens"] == 6 * 8 * 32
    assert run["long_rows"] == runs[1]["long_rows"]
    assert 0 < run["long_rows"]["held_out_loss"] < 8
    assert f"In rows of 128 tokens it is {run['long_rows']['held_out_loss']:.4f}." in result.summary()
    assert "Its rows were of 128 tokens, so that its further 384 positions are untrained." in result.summary()
    assert "| Sequence length | 32, 128 from 0.6 of the clock on |" in (tmp_path / "straight/README.md").read_text()
    assert AutoTokenizer.from_pretrained(tmp_path / "straight").model_max_length == 128
    found = evaluate(tmp_path / "straight", "loss")
    assert found["loss"]["held_out_loss"] == pytest.approx(result.held_out_loss, abs=1e-5)

    changes["data"] = {"sequence_length": {0: 32, 0.6: 64}}
    (tmp_path / "out" / "checkpoint-6").rename(tmp_path / "gone")
    with pytest.raises(EffptError, match=r"`data\.sequence_length: .*128.*`, but the recipe now says .*64"):
        pretrain(Recipe.load(recipe(corpus, tmp_path / "out", **changes)), resume=True)


def command(corpus, out, *flags):
    settings = recipe(corpus, out)
    words = [f"--{section}.{key}" for section, keys in settings.items() for key in keys]
    values = [str(value) for keys in settings.values() for value in keys.values()]
    pairs = [word for pair in zip(words, values, strict=True) for word in pair]
    return ["pretrain", "tiny", *pairs, *flags]


def test_the_command_does_the_same(corpus, tmp_path, capsys):
    assert main(command(corpus, tmp_path / "out", "--methods.layerdrop.p", "0.3")) == 0
    assert "effpt push" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["ledger"]["methods"] == {"layerdrop": {"p": 0.3}}


def test_an_output_folder_with_another_run_is_left_alone(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(corpus, out)) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(command(corpus, out)) == 2
    assert "holds another run already" in capsys.readouterr().err
    assert main(command(corpus, out, "--resume", "--model.hidden_size", "64")) == 2
    assert "`model.hidden_size: 32`, but the recipe now says 64" in capsys.readouterr().err
    assert main(command(corpus, out, "--resume", "--training.seed", "7")) == 2
    assert "`training.seed: 42`, but the recipe now says 7" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["tokenizer", str(corpus), "--vocab_size", "256", "--out", str(out)]) == 2
    assert "whose tokenizer this would replace" in capsys.readouterr().err
    # A checkpoint that cannot be used leaves the recipe as it was.
    assert main(command(corpus, out, "--resume", str(out / "checkpoint-77"), "--training.learning_rate", "1e-5")) == 2
    assert "cannot be used" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "tokenizer.json", "generator"])
def test_files_of_others_are_not_replaced(corpus, tmp_path, capsys, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("data: {dataset: mine}")
    assert main(command(corpus, out)) == 2
    assert f"holds {name}, which the run would replace" in capsys.readouterr().err
    assert (out / name).read_text() == "data: {dataset: mine}"


def test_the_folder_one_is_in_is_no_output_folder(corpus, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(command(corpus, ".")) == 2
    assert "is the one you are in" in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.dataset", "nowhere/"], "nowhere"),
        (["--training.per_device_train_batch_size", "5000"], "too few for one step of 5000"),
        (["--data.vocab_size", "250"], "multiple of 64"),
        (["--training.budgte", "10min"], "budget"),
        (["--training.budget", "ten"], "Cannot read the budget"),
        (["--training.learning_rate", "-1"], "must be above 0"),
        (["--methods.layerdrop.p", "1.5"], "must be in [0, 1)"),
        (["--methods.layerdrop.p", "0.1", "--methods.layerdrop.after", "0.1", "--methods.stacking.depth", "2",
          "--methods.stacking.at", "0.5"], "leave `after` out"),
        (["--methods.layerdorp.p", "0.1"], "did you mean `layerdrop`"),
        (["--resume"], "no run in"),
        (["--model.attn_implementation", "foo"], "Transformers cannot train with these settings"),
        (["--training.report_to", "comet_ml"], "Transformers cannot train with these settings"),
        (["--data.tokenizer", "no/such/tokenizer", "--data.vocab_size", "null"], "cannot be loaded"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_before_any_training(corpus, tmp_path, capsys, flags, words):
    assert main(command(corpus, tmp_path / "out", *flags)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not checkpoints_in(tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_damaged_checkpoint_is_named_with_the_last_whole_one(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(corpus, out)) == 0
    weights = out / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(command(corpus, out, "--resume")) == 2
    assert f"resume from the last whole one: {out / 'checkpoint-3'}" in capsys.readouterr().err
    assert main(command(corpus, out, "--resume", str(out / "checkpoint-3"))) == 0
    assert AutoModelForMaskedLM.from_pretrained(out).config.num_hidden_layers == 4


def test_a_text_that_has_changed_is_not_resumed_on(corpus, tmp_path, capsys):
    copied = tmp_path / "corpus"
    shutil.copytree(corpus, copied)
    out = tmp_path / "out"
    assert main(command(copied, out)) == 0
    (copied / "more.txt").write_text("more " * 400)
    assert main(command(copied, out, "--resume", str(out / "checkpoint-3"))) == 2
    assert "The text or the tokenizer has changed since" in capsys.readouterr().err


def test_held_out_text_of_its_own_is_the_validation_split(tmp_path):
    """A folder with both splits may be named twice: what is trained on is not what is held out."""
    both = tmp_path / "both"
    both.mkdir()
    generator = random.Random(0)
    for name in ("train", "validation"):
        texts = [" ".join([name, *generator.choices(WORDS, k=100)]) for _ in range(40)]
        (both / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = recipe(both, tmp_path / "out", data={"dataset": str(both), "validation": str(both)})
    _, tokenizer, rows = prepare_data(Recipe.load(settings))
    found = {
        split: tokenizer.decode([token for row in rows[split]["input_ids"] for token in row]).split().count("train")
        for split in rows
    }
    assert found["train"] > 20
    assert found["validation"] == 0
