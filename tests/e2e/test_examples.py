"""Every example runs as its first lines say, on a little text, and is short enough to read."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = "one two three layers heads tokens masks notes learn grow shrink stack".split()


def run(script, *arguments, cwd, **environment):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=200)


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


@pytest.mark.parametrize("script", ["01_pretrain.py", "02_layerdrop.py", "03_stacking.py"])
def test_training_examples(corpus, tmp_path, script):
    done = run(script, corpus, "--budget", "8steps", "--vocab_size", "256", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Held-out loss" in done.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()
    if script == "03_stacking.py":
        assert "grew from 2 to 4 layers" in done.stdout
    if script == "01_pretrain.py":
        task = run("make_task.py", "task.jsonl", "--dataset", corpus, cwd=tmp_path)
        assert task.returncode == 0, task.stderr
        tuned = run("04_finetune.py", "run", "task.jsonl", "--max_steps", "2", cwd=tmp_path)
        assert tuned.returncode == 0, tuned.stderr
        assert "accuracy" in tuned.stdout
        plotted = run("05_plot_loss.py", "run", cwd=tmp_path)
        assert plotted.returncode == 0, plotted.stderr
        assert (tmp_path / "run" / "loss.png").stat().st_size > 5000
