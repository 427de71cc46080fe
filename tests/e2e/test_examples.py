"""Every example runs as its first lines say, on a little text, and is short enough to read."""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

from hf_effpt import EffptTrainingArguments, Recipe, pretrain
from hf_effpt.comparison import run_launcher
from hf_effpt.evaluation import layer_choice
from tests.processes import Started, run

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = "one two three layers heads tokens masks notes learn grow shrink stack".split()


class Forked:
    """Process forked with the slow imports done; takes the place of a `subprocess.Popen` of this interpreter."""

    def __init__(self, command, env, stdout, stderr):
        _, *words = command
        function, options = ("run_module", ", alter_sys=True") if words[0] == "-m" else ("run_path", "")
        name, *arguments = words[words[0] == "-m" :]
        # its parent is the server of processes, without which it would end
        code = f"import os, runpy; os.getppid = lambda: {os.getpid()}; "
        code += f"runpy.{function}({name!r}, run_name='__main__'{options})"
        places = [str(EXAMPLES), str(EXAMPLES.parent)]
        self._started = Started(code, *arguments, folder=Path.cwd(), name=stdout.name, environment=env, path=places)

    def wait(self, timeout=None):
        return self._started.wait()

    def terminate(self):
        os.kill(self._started.pid, signal.SIGTERM)


FORKING = SimpleNamespace(Popen=Forked, STDOUT=None, TimeoutExpired=subprocess.TimeoutExpired)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Runs an example in this process, which has imported what takes longest, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run_here(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with contextlib.redirect_stdout(io.StringIO()) as output, warnings.catch_warnings(action="default"):
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return output.getvalue()

    level = logging.getLogger("hf_effpt").level
    yield run_here
    logging.getLogger("hf_effpt").setLevel(level)  # which an example may have changed


@pytest.fixture
def few_rows(monkeypatch):
    """Micro-batches of four rows where an example leaves their number out."""
    check = EffptTrainingArguments.__post_init__

    def of_few_rows(args):
        args.per_device_train_batch_size = min(4, args.per_device_train_batch_size)
        check(args)

    monkeypatch.setattr(EffptTrainingArguments, "__post_init__", of_few_rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(1)
    for number in range(40):
        words = " ".join(generator.choices(WORDS, k=400))
        (folder / f"{number}.txt").write_text(words, encoding="utf-8")
    return folder


def test_examples_are_short():
    for script in EXAMPLES.glob("[0-9]*.py"):
        assert len(script.read_text().splitlines()) <= 60, script.name


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(
    "script",
    [
        "02_layerdrop.py",
        "03_stacking.py",
        "11_layerskip.py",
        "13_earlybert.py",
        "15_compress.py",
        "16_selection.py",
    ],
)
def test_training_examples(corpus, tmp_path, here, script, monkeypatch):
    monkeypatch.setattr(layer_choice, "STEPS", 3)
    words = ["--budget", "8steps", "--vocab_size", "256", "--out", "run"]
    if script == "16_selection.py":
        words += ["--strategy", "least_confidence"]  # which needs no warm-up
    printed = here(script, corpus, *words)
    assert "Held-out loss" in printed
    assert (tmp_path / "run" / "model.safetensors").is_file()
    if script == "03_stacking.py":
        assert "grew from 2 to 4 layers" in printed
    if script == "02_layerdrop.py":
        pruned = here("12_prune.py", "run", corpus, "--depth", "2", "--out", "pruned")
        assert "every_other: layers [0, 2], loss " in pruned
        assert "data_driven: layers " in pruned
        assert json.loads((tmp_path / "pruned" / "config.json").read_text())["num_hidden_layers"] == 2
    if script == "11_layerskip.py":
        assert "of rows and gated layers ran" in printed
        assert "with all layers" in printed
    if script == "13_earlybert.py":
        assert "Step 2: heads and neurons of the layers are [[3, " in printed
        assert (tmp_path / "run" / "ticket.json").is_file()
    if script == "16_selection.py":
        # all rows in the first half, then a choice of twice as many in every other step: two of the eight
        assert "Selection learned from 32 of 40 rows and judged 16" in printed
    if script == "15_compress.py":
        assert (
            "cut to 3 layers of 2 heads and 256 neurons: layers at equal distances, heads and neurons by michel"
            in printed
        )


@pytest.mark.usefixtures("few_rows")
def test_from_text_to_a_measured_model(corpus, tmp_path, here):
    """The first examples, one after another."""
    printed = here("01_pretrain.py", corpus, "--budget", "4steps", "--vocab_size", "256", "--out", "run")
    assert "Held-out loss" in printed
    assert (tmp_path / "run" / "model.safetensors").is_file()
    here("make_task.py", "task.jsonl", "--dataset", corpus)
    # which makes the package impossible to import
    script = f"import runpy; runpy.run_path({str(EXAMPLES / '04_finetune.py')!r}, run_name='__main__')"
    tuned = run(script, "run", "task.jsonl", "--max_steps", "2", folder=tmp_path)
    assert "accuracy" in tuned.said
    measured = here("06_evaluate.py", "run", "task.jsonl", "--text", corpus, "--seeds", "2")
    assert "| held_out_loss |" in measured
    assert "| task/accuracy@default |" in measured
    learned = here("17_what_it_learned.py", "run", "--text", corpus, "--sentences", "2")
    assert learned.count("      was ") == 2
    assert learned.splitlines()[-1].count(", ") == 4
    here("05_plot_loss.py", "run")
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000


@pytest.mark.usefixtures("few_rows")
def test_notebook(tmp_path, monkeypatch):
    """Its cells one after another, with other settings than those of the first."""
    monkeypatch.chdir(tmp_path)
    for page in (EXAMPLES.parent / "docs").glob("*.md"):  # which has words enough for vectors of them
        shutil.copy(page, tmp_path / f"{page.stem}.txt")
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    settings, *steps = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {"__name__": "__main__"}
    exec(settings, names)
    names |= {"texts": f"{tmp_path}/*.txt", "out": "run", "budget": "4steps"}
    matplotlib.use("Agg")
    with contextlib.redirect_stdout(io.StringIO()) as output, warnings.catch_warnings(action="default"):
        for step in steps:
            exec(step, names)
    pyplot = names["plt"]
    assert len(pyplot.gca().lines) == 3
    pyplot.close("all")
    assert "Trained for 4 steps" in output.getvalue()
    assert output.getvalue().count("this function returns the") == 5


@pytest.mark.usefixtures("few_rows")
def test_lottery_example(corpus, tmp_path, here):
    printed = here("14_lottery.py", corpus, "--budget", "6steps", "--vocab_size", "256", "--out", "run")
    assert "50% of the weights are zero" in printed
    assert "with the same zeros" in printed
    for name in ("model.safetensors", "ticket.safetensors", "retrained/model.safetensors"):
        assert (tmp_path / "run" / name).is_file(), name


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ("08_tnf.py", ["--min_count", "1000", "--max_count", "1300"]),  # of the twelve words of this text
        ("09_electra.py", []),
        ("10_mcbert.py", ["--candidates", "4"]),
        ("10_mcbert.py", ["--candidates", "4", "--candidates_at", "masked"]),
    ],
)
def test_objective_examples(corpus, tmp_path, here, script, settings):
    printed = here(script, corpus, "--budget", "4steps", "--vocab_size", "256", "--out", "run", *settings)
    assert "Held-out loss" in printed
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "generator" / "model.safetensors").is_file() == (script != "08_tnf.py")
    if script == "08_tnf.py":
        assert "of words have a note" in printed
    if script == "09_electra.py":
        assert "ElectraForPreTraining in run\nElectraForMaskedLM in run/generator" in printed


@pytest.mark.slow
def test_step_benchmark(corpus, tmp_path, here):
    """The text has no rare words by the default counts, so it is given some that are."""
    generator = random.Random(2)
    rare = [f"rare{number}" for number in range(60) for _ in range(8)]
    text = " ".join(generator.sample(rare, k=len(rare)))
    (tmp_path / "text").mkdir()
    for file in corpus.iterdir():
        (tmp_path / "text" / file.name).write_text(file.read_text())
    (tmp_path / "text" / "rare.txt").write_text(text)
    shape = "4x128, vocabulary 2,048"
    words = ["--dataset", "text", "--shapes", shape, "--rounds", "2", "--out", "r.json"]
    code = (EXAMPLES / "benchmark_steps.py").read_text().replace("2048, 64, 32)", "2048, 64, 4)")
    (tmp_path / "benchmark_steps.py").write_text(code)  # of few rows
    here(tmp_path / "benchmark_steps.py", *words)
    found = json.loads((tmp_path / "r.json").read_text())["results"][shape]["dropout 0.0"]
    assert found["mlm"]["ratio_to"]["mlm"]["median"] == 1.0
    # what does not depend on the machine: the operations
    flops = {name: row["gflops"] for name, row in found.items()}
    assert flops["mlm"] < flops["mlm, last layer everywhere"] == flops["tnf"] < flops["electra"] < flops["mcbert"]
    assert flops["electra"] < 1.35 * flops["mlm"]
    assert flops["mcbert"] < 1.6 * flops["electra"]


@pytest.mark.slow
def test_gpu_benchmark(corpus, tmp_path, here, monkeypatch):
    """The suite for a GPU measures all ways on any device; here with a model that takes little time."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    suite = importlib.import_module("benchmark_gpu")
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    for name, value in {"SIZES": {"4x512 (small)": (shape, 2)}, "MOST": 1, "WARM": 1, "VOCABULARY": 256}.items():
        monkeypatch.setattr(suite, name, value)
    monkeypatch.setattr(suite, "PROFILED", ("4x512 (small)", "mlm", "ours"))
    curve = {"held_out_loss": 5.0, "clock": {"tokens": 1e6}}
    monkeypatch.setattr(suite, "run_equal_time", lambda *_: {"stock": curve})
    here("benchmark.py", "--suite", "gpu", "--dataset", corpus, "--out", "r.json")
    found = json.loads((tmp_path / "r.json").read_text())["results"]
    assert found["equal_time"] == {"stock": curve}
    for objective, ways in found["speed"]["4x512 (small)"].items():
        assert list(ways) == ["stock", "ours", "fast"]
        assert all(one["tokens_per_second"] > 0 and one["steps"] == 1 for one in ways.values())
        # what does not depend on the machine: logits of some tokens against those of all
        assert ways["ours"]["flops_per_token"] < 0.8 * ways["stock"]["flops_per_token"], objective
    assert found["speed"]["4x512 (small)"]["mlm"]["ours"]["profile"]["largest"][0]["seconds"] > 0


@pytest.mark.slow
def test_selection_benchmark(tmp_path, here):
    arms = ["random", "selective_backprop full", "selective_backprop stale", "core_set first_layer", "reweighting"]
    here("benchmark_selection.py", "--models", "4x64", "--rounds", "2", "--arms", *arms, "--out", "r.json")
    (found,) = json.loads((tmp_path / "r.json").read_text())["results"].values()
    assert set(found) == set(arms)
    # what does not depend on the machine: the operations, of which a forward pass is a third
    assert found["random"]["s_flops"] == found["selective_backprop stale"]["s_flops"] == 0.0
    assert found["selective_backprop full"]["s_flops"] == pytest.approx(1 / 3, abs=0.01)
    assert found["selective_backprop full"]["per_trained"]["flops"] == pytest.approx(1 + 2 / 3, abs=0.02)
    assert 0.0 < found["core_set first_layer"]["s_flops"] < 0.15
    assert (found["reweighting"]["keep"], found["random"]["keep"]) == (1.0, 0.5)


@pytest.mark.slow
def test_comparison_example(corpus, tmp_path, here, monkeypatch):
    """Three arms, one seed: runs in processes of their own, and the report of what there is."""
    monkeypatch.setattr(run_launcher, "subprocess", FORKING)
    words = [corpus, "--budget", "6steps", "--seeds", "1", "--fractions", "1", "--vocab_size", "256", "--out", "r"]
    assert "No verdict" in here("07_compare.py", *words)  # one seed gives none
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [arm["summary"]["final_loss"]["n"] for arm in report["arms"]] == [1, 1, 1]
    assert all(arm["runs"][0]["final_learning_rate"] < 1e-9 for arm in report["arms"])
    for name in ("report.html", "report.md", "loss_by_time.png"):
        assert (tmp_path / "r" / name).stat().st_size > 500, name
    here("07_compare.py", *words)  # all runs are done: only the report is made
    assert json.loads((tmp_path / "r" / "report.json").read_text())["arms"] == report["arms"]


@pytest.mark.slow
def test_compressed_comparison(corpus, tmp_path, here):
    recipe = {
        "model": {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
        "data": {"dataset": str(corpus), "sequence_length": 64, "vocab_size": 256, "validation": 0.05},
        "training": {"output_dir": "out", "per_device_train_batch_size": 8},
    }
    (tmp_path / "large.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    cut = ["--depth", "2", "--head_keep", "0.5", "--ffn_keep", "0.5"]
    words = ["large.yaml", *cut, "--budget", "8steps", "--seeds", "0", "--out", "r"]
    here("compare_compressed.py", *words)
    models = json.loads((tmp_path / "r" / "frontier.json").read_text())["models"]
    assert list(models) == ["compressed", "random", "small", "large", "large, with zeros", "large, int8"]
    sizes = {name: models[name]["parameters"]["mean"] for name in models}
    assert sizes["compressed"] == sizes["random"] == sizes["small"] == sizes["large, with zeros"] < sizes["large"]
    assert models["large, int8"]["bytes"]["mean"] < models["large"]["bytes"]["mean"]
    assert [name for name in models if "latency_32" in models[name]] == ["compressed", "random", "small", "large"]
    assert (tmp_path / "r" / "frontier.png").stat().st_size > 5000


@pytest.mark.slow
def test_against_stock(corpus, tmp_path, here, monkeypatch):
    monkeypatch.setattr(run_launcher, "subprocess", FORKING)
    recipe = {
        "model": {"size": "tiny"},
        "data": {"dataset": str(corpus), "sequence_length": 64, "vocab_size": 256, "validation": 0.05},
        "training": {"per_device_train_batch_size": 8, "report_to": "none"},
    }
    (tmp_path / "mlm.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    words = ["mlm.yaml", "--budget", "8192tokens", "--seeds", "1", "--fractions", "1", "--out", "r"]
    here("against_stock.py", *words, "--stock_learning_rate", "2e-3")
    stock, ours = json.loads((tmp_path / "r" / "report.json").read_text())["arms"]
    assert (stock["name"], ours["name"]) == ("stock", "mlm")
    assert (stock["recipe"]["training"]["learning_rate"], ours["recipe"]["training"]["learning_rate"]) == (2e-3, 1e-3)
    for arm in (stock, ours):
        (entry,) = arm["runs"]
        assert entry["clock"]["tokens"] == 8192
        assert entry["final_learning_rate"] == pytest.approx(0, abs=1e-9)
        assert len(entry["curve"]) >= 2
    # dense logits: the stock model spends more on a token
    assert (
        stock["summary"]["flops"] / stock["summary"]["tokens"] > ours["summary"]["flops"] / ours["summary"]["tokens"]
    )
    assert ours["recipe"]["model"].get("dropout", 0.0) == 0.0
    assert stock["recipe"]["model"]["dropout"] == 0.1


@pytest.mark.slow
def test_speedrun(tmp_path, here, monkeypatch):
    """A record of one seed and a second, by rules of its own text; and what the rules refuse."""
    monkeypatch.setattr(run_launcher, "subprocess", FORKING)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    home, files = tmp_path / "model_cards" / "speedrun", {}
    home.mkdir(parents=True)
    for split, seed in (("train", 1), ("validation", 2)):
        words = random.Random(seed).choices(WORDS, k=6000)
        (tmp_path / f"{split}-a.txt").write_text(" ".join(words))
        files[split] = {f"{split}-a.txt": hashlib.sha256((tmp_path / f"{split}-a.txt").read_bytes()).hexdigest()}
    rules = {"files": files, "data": {"sequence_length": 32, "vocab_size": 256}}
    (home / "text.json").write_text(json.dumps(rules))
    shutil.copy(EXAMPLES.parent / "model_cards" / "speedrun" / "README.md", home)
    (tmp_path / "examples").mkdir()
    code = (EXAMPLES / "speedrun.py").read_text().replace('"5min"', '"1s"').replace("SEEDS = 3", "SEEDS = 1")
    (tmp_path / "examples" / "speedrun.py").write_text(code)
    recipe = {"model": {"size": "tiny"}, "training": {"output_dir": "out", "per_device_train_batch_size": 8}}
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    script, words = tmp_path / "examples" / "speedrun.py", ["own.yaml", "--text", ".", "--name", "own"]
    here(script, *words)
    record = json.loads((home / "cpu" / "own.json").read_text())
    assert record["recipe"]["data"]["validation"] == ["validation-a.txt"]
    assert record["runs"][0]["held_out_loss"] == record["loss"]["mean"]
    assert f"| [own](cpu/own.json) | {record['loss']['mean']:.3f} | " in (home / "README.md").read_text()
    (tmp_path / "own.yaml").write_text(json.dumps(recipe | {"data": {"sequence_length": 64}}))
    with pytest.raises(SystemExit, match=r"leave `data.sequence_length` out"):
        here(script, *words)
    (tmp_path / "train-a.txt").write_text("another text")
    with pytest.raises(SystemExit, match=r"train-a\.txt is missing, or not the file of the rules"):
        here(script, *words)


@pytest.mark.slow
def test_adapted_comparison(corpus, tmp_path, here):
    data = {"dataset": str(corpus), "vocab_size": 256, "validation": 0.05}
    training = {"output_dir": "base", "budget": "4steps", "per_device_train_batch_size": 4, "report_to": "none"}
    pretrain(Recipe.load({"model": {"size": "tiny"}, "data": data, "training": training}))
    here("make_task.py", "task.jsonl", "--dataset", corpus)
    lines = (tmp_path / "task.jsonl").read_text().splitlines()
    (tmp_path / "task.jsonl").write_text("\n".join(lines[:48]))
    domain = tmp_path / "domain"
    domain.mkdir()
    for split in ("train", "validation"):
        text = " ".join(random.Random(len(split)).choices([*WORDS, "kidneys", "salted", "winter", "yonder"], k=4000))
        (domain / f"{split}.txt").write_text(text)
    words = ["base", "--domain", domain, "--general", corpus, "--task", "task.jsonl", "--task_seeds", "1"]
    words += ["--budget", "3steps", "--add_tokens", "2", "--out", "r", "--training.per_device_train_batch_size", "4"]
    here("compare_adapted.py", *words)
    found = json.loads((tmp_path / "r" / "adapted.json").read_text())["results"]
    assert list(found) == ["unchanged", "from scratch", "adapted", "adapted, new words"]
    scores = {name: {key: one["value"]["mean"] for key, one in scores.items()} for name, scores in found.items()}
    assert all(list(one) == ["domain", "general", "task/accuracy@default"] for one in scores.values())
    assert scores["adapted"]["domain"] != scores["unchanged"]["domain"]
    begun = here("compare_adapted.py", *words)  # all is done: only the table is made
    assert begun.count("\n") == 12
