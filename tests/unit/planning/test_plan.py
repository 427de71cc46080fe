"""What is proposed for a budget, with a stand-in for the measurement; and one real measurement."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from hf_effpt.cli.main import main
from hf_effpt.core.errors import EffptError
from hf_effpt.planning import measuring, pilot
from hf_effpt.planning.measuring import TooLarge
from hf_effpt.planning.plan import dry_run, plan
from hf_effpt.planning.proposing import Candidate, candidate_for, proposed, rate_for, rows_for
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.recipe.settings import SIZES
from tests.unit.planning.test_forecasts import MEASURED


@pytest.fixture
def corpus(tmp_path):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(80)]
    path = tmp_path / "corpus.jsonl"
    texts = [" ".join(draw.choices(words, k=120)) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


class Measuring:
    """Stand-in of `measure`: a machine of so many FLOPs a second, with memory for so many rows at once.

    `rows` are those of any size, or by size.
    """

    def __init__(self, flops_per_second=1e10, rows=10**6):
        self.flops_per_second, self.asked = flops_per_second, []
        self.rows = rows if isinstance(rows, dict) else dict.fromkeys(SIZES, rows)

    def __call__(self, sections, seconds, device):
        self.asked.append((sections, device))
        rows = sections["training"]["per_device_train_batch_size"]
        if rows > self.rows.get(sections["model"]["size"], 0):
            raise TooLarge("too large")
        layers, width, _ = SIZES[sections["model"]["size"]]
        flops = 6.0 * 12 * layers * width**2 + 1e6
        return replace(
            MEASURED, tokens_per_second=self.flops_per_second / flops, flops_per_token=flops, width=width,
            step_tokens=128 * rows * sections["training"]["gradient_accumulation_steps"], layers=layers,
        )  # fmt: skip


def test_more_budget_means_larger_models_and_batches_and_lower_rates():
    found = [candidate_for(flops, 2.6e6, "tiny") for flops in (1e12, 1e16, 1e18, 1e20)]
    assert [one.size for one in found] == sorted((one.size for one in found), key=list(SIZES).index)
    assert (found[0], found[-1].size) == (Candidate("tiny", 8), "large")
    assert [rows_for(tokens) for tokens in (1e5, 5e6, 8e7, 1e13)] == [8, 8, 32, 1024]
    assert [rate_for(width) for width in (128, 768)] == [3e-3, 1e-3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gpu", [False, True])
def test_what_is_proposed_is_a_valid_recipe(size, gpu):
    sections = proposed(Candidate(size, 64), {"dataset": "text"}, gpu, 32)
    sections["training"].pop("bf16", None)  # which this machine may not have
    recipe = Recipe.load(sections)
    assert recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps == 64
    assert recipe.model.size == size


def test_a_plan_is_a_recipe_with_reasons_and_its_forecast(corpus, tmp_path):
    out, measure = tmp_path / "plans" / "mine.yaml", Measuring(1e12)
    told = plan(str(corpus), out, hours=10, command="effpt plan x", measure=measure)
    assert "twice the budget" in told
    recipe, text = Recipe.load(out), out.read_text()
    assert (recipe.training.budget, recipe.training.output_dir) == ("10h", "mine")
    assert recipe.data.dataset == str(corpus)
    assert recipe.model.size == measure.asked[-1][0]["model"]["size"] == "small"
    assert len(measure.asked) <= 3
    assert text.startswith("# Made by `effpt plan x`.\n# No methods")
    assert all(f"# {line}".rstrip() in text for line in told.splitlines())
    with pytest.raises(EffptError, match=r"mine\.yaml exists"):
        plan(str(corpus), out, hours=10, measure=measure)


def test_energy_limits_time_and_the_text_of_a_recipe_is_kept(corpus, tmp_path):
    source = tmp_path / "given.yaml"
    source.write_text(f"data: {{dataset: {corpus}, sequence_length: 64}}\ntraining: {{learning_rate: 1}}\n")
    plan(str(source), tmp_path / "a.yaml", hours=10, kwh=4 / 1000, measure=Measuring())
    written = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert written["training"]["budget"] == "3600s"  # 4 W for an hour
    assert written["data"]["sequence_length"] == 64
    assert "as in the runs measured" not in (tmp_path / "a.yaml").read_text()  # the user's own has no reason of ours
    assert written["training"]["learning_rate"] == 0.003


def test_fewer_rows_at_once_where_memory_is_too_little(corpus, tmp_path):
    plan(str(corpus), tmp_path / "a.yaml", hours=0.1, measure=Measuring(rows=4))
    written = yaml.safe_load((tmp_path / "a.yaml").read_text())["training"]
    assert (written["per_device_train_batch_size"], written["gradient_accumulation_steps"]) == (4, 2)
    with pytest.raises(TooLarge, match="too little memory for 4 rows of a model of size tiny"):
        plan(str(corpus), tmp_path / "b.yaml", hours=0.1, measure=Measuring(rows=1))


def test_a_size_that_does_not_fit_is_told_and_the_next_smaller_one_is_planned(corpus, tmp_path):
    """Attempts without memory do not count: a machine for `base` that can hold no more than 16 rows of `mini`."""
    measure = Measuring(1e14, rows={"tiny": 10**6, "mini": 16})
    told = plan(str(corpus), tmp_path / "a.yaml", hours=10, measure=measure)
    tried = [sections["model"]["size"] for sections, _ in measure.asked]
    assert tried[0] == "tiny"
    assert list(dict.fromkeys(tried[1:])) == ["base", "medium", "small", "mini"]
    assert "- small and larger sizes do not fit into the memory of this device" in told
    assert "- more rows at once do not fit into the memory of this device" in told
    text = (tmp_path / "a.yaml").read_text()
    assert "  # small and larger sizes do not fit into the memory of this device\n  size: mini\n" in text
    assert yaml.safe_load(text)["training"]["per_device_train_batch_size"] == 16
    alone = Measuring(1e14, rows={"tiny": 10**6})
    assert "mini and larger sizes do not fit" in plan(str(corpus), tmp_path / "b.yaml", hours=10, measure=alone)
    assert yaml.safe_load((tmp_path / "b.yaml").read_text())["model"]["size"] == "tiny"


def test_a_large_text_is_measured_by_a_sample(corpus, tmp_path, monkeypatch):
    size = sum(len(json.loads(line)["text"]) for line in corpus.read_text().splitlines())
    monkeypatch.setattr("hf_effpt.planning.text_of_pilot.SAMPLE_BYTES", size // 4)
    measure = Measuring()
    told = plan(str(corpus), tmp_path / "a.yaml", hours=0.1, measure=measure)
    assert measure.asked[0][0]["data"]["dataset"].endswith("sample.jsonl")
    tokens, passes = (
        next(line for line in told.splitlines() if line.startswith(name)) for name in ("tokens", "passes")
    )
    seen, share = float(tokens.split()[2]) * 1e6, float(passes.split()[4])
    assert seen / share == pytest.approx(4e6, rel=0.1)  # the text has 4 times the million tokens of the sample


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere/", "--hours", "1"], "There is no file or folder 'nowhere/'"),
        (["tiny"], "A plan needs a budget"),
        (["tiny", "--hours", "-1"], "`--hours` is -1.0, but must be above 0"),
        (["tiny", "--hours", "1", "--device", "tpu"], "`--device` is 'tpu'"),
        (["list.yaml", "--hours", "1"], "has ['a'] in the place of its sections"),
        (["value.yaml", "--hours", "1"], "has 'x' in its section `data`"),
    ],
)
def test_bad_input_is_one_clear_line_before_any_measurement(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("[a]")
    (tmp_path / "value.yaml").write_text("data: x")
    assert main(["plan", *words, "--out", "a.yaml"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "a.yaml").exists()


def test_a_real_measurement_in_this_process(corpus, tmp_path, monkeypatch):
    """A dry run leaves no folder; a measurement counts time, tokens, memory and the text."""
    found = []

    def measure(sections, seconds, device):
        found.append(pilot.measure(sections, 0.3))
        return found[-1]

    sections = {
        "model": {"size": "tiny", "hidden_size": 32, "start": {"embeddings": "cooccurrence"}},
        "methods": {"layerdrop": {"p": 0.2}},
        "data": {"dataset": str(corpus), "sequence_length": 32, "vocab_size": 256, "validation": 0.1},
        "training": {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "num_train_epochs": 2,
                     "use_cpu": True},
    }  # fmt: skip
    said = dry_run(Recipe.load(sections), measure=measure)
    (measured,) = found
    assert "passes over text" in said
    assert "2.0" in said.split("passes over text")[1].splitlines()[0]
    assert (measured.step_tokens, measured.width, measured.vocabulary) == (128, 32, 256)
    assert measured.tokens_per_second > 0
    assert measured.start_seconds > 0
    assert measured.floor > 3
    assert not (tmp_path / "out").exists()
    with pytest.raises(EffptError, match="too few for one step"):
        dry_run(Recipe.load(sections, ["--training.per_device_train_batch_size", "100000"]), measure=measure)


@pytest.fixture
def gpus(monkeypatch):
    """Three GPUs in the place of those that this machine may have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("visible", "name"), [(None, "1"), ("4, 7,9", "7"), ("GPU-a,GPU-b,GPU-c", "GPU-b")])
def test_a_gpu_is_one_of_those_that_are_visible(gpus, monkeypatch, visible, name):
    seen = []

    def run(command, env, **kwargs):
        seen.append(env.get("CUDA_VISIBLE_DEVICES"))
        return SimpleNamespace(returncode=pilot.NO_MEMORY, stderr="")

    monkeypatch.setattr(measuring.subprocess, "run", run)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for device in ("cuda:1", "cuda"):
        with pytest.raises(TooLarge):
            measuring.measure({"training": {}}, 1.0, device)
    assert seen == [name, visible]


@pytest.mark.parametrize("device", ["cuda:3", "cuda:-1", "cuda:x", "cuda:", "cpu:0", "gpu:0"])
def test_a_gpu_that_is_not_there_is_refused_before_any_measurement(gpus, tmp_path, device):
    measure = Measuring()
    with pytest.raises(EffptError, match=r"There is no GPU|must be cpu, cuda, or one GPU"):
        plan("tiny", tmp_path / "a.yaml", hours=1, device=device, measure=measure)
    assert not measure.asked


def test_a_pilot_that_fails_says_why(monkeypatch):
    def answer(code, error):
        done = type("Done", (), {"returncode": code, "stderr": error})
        monkeypatch.setattr(measuring.subprocess, "run", lambda *_, **__: done)

    answer(pilot.NO_MEMORY, "")
    with pytest.raises(TooLarge, match="too little memory"):
        measuring.measure({"training": {}}, 1.0)
    answer(2, "warning\nThere is no text.\n")
    with pytest.raises(EffptError, match="cannot be measured: There is no text"):
        measuring.measure({"training": {}}, 1.0)
