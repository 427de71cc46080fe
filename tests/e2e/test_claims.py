"""Figures in the pages come from the results files, examples of README run, and its tables name what there is."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from hf_effpt.core.registry import METHODS, build_methods
from tests.unit.comparison.example_report import with_objectives

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def check(monkeypatch, capsys):
    """Runs a script's check in this process, which has imported what takes longest; returns what it finds wrong."""

    def run_here(script):
        monkeypatch.setattr(sys, "argv", [str(script), "--check"])
        monkeypatch.syspath_prepend(str(script.parent))
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as left:
            if left.code:
                return capsys.readouterr().err + str(left.code)
        return ""

    return run_here


def test_tables_are_those_of_the_results_files(check):
    assert check(ROOT / "model_cards" / "tables.py") == ""


def test_cards_say_what_the_results_say(check):
    assert check(ROOT / "model_cards" / "cards.py") == ""


def test_the_picture_says_what_the_results_say(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["picture.py", "--out", str(tmp_path / "picture.png")])
    drawn = runpy.run_path(str(ROOT / "model_cards" / "picture.py"), run_name="__main__")
    report = json.loads((ROOT / "model_cards" / "results" / "fast_against_stock.json").read_text())
    losses = [f"{arm['summary']['final_loss']['mean']:.2f}" for arm in report["arms"]]
    (axes,) = drawn["draw"](report).axes
    said = README.split("![")[1].split("]")[0]
    assert [text.get_text().split(": ")[1] for text in axes.texts[:3]] == losses
    assert all(loss in said for loss in losses)
    assert (tmp_path / "picture.png").stat().st_size < 60_000


def test_a_wrong_figure_in_a_card_is_found(tmp_path, check):
    """On a copy: the check of the cards can fail."""
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    card = next((tmp_path / "model_cards").glob("*.md"))
    card.write_text(re.sub(r"\d\.\d{4}", "1.2345", card.read_text(), count=1))
    assert card.name in check(tmp_path / "model_cards" / "cards.py")


def test_every_results_file_names_its_command():
    for path in (ROOT / "model_cards" / "results").glob("*.json"):
        command = json.loads(path.read_text())["command"]
        assert command.startswith(("python examples/", "python -m tests.", "python model_cards/", "effpt ")), path.name


def test_every_method_has_its_row():
    build_methods({})
    rows = re.findall(r"^\| \[`(\w+)`\]\(hf_effpt/methods/(\w+)/README\.md\)", README, re.MULTILINE)
    assert {name for name, _ in rows} == {folder for _, folder in rows} == set(METHODS)


PAGES = (
    "README.md",
    "hf_effpt/README.md",
    "examples/README.md",
    "model_cards/README.md",
    "model_cards/speed.md",
    "docs",
)


@pytest.mark.parametrize(
    "page",
    [str(path.relative_to(ROOT)) for page in PAGES for path in [ROOT / page, *sorted((ROOT / page).glob("*.md"))]
     if path.is_file()],
)  # fmt: skip
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_readme_is_short():
    assert len(README.splitlines()) <= 220
    assert len(README.split()) <= 2000


def test_every_example_has_its_row():
    rows = re.findall(
        r"^\| \[`(\w+\.py)`\]", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(rows) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
    """The example as printed, but for the sizes, on a little text; what comes later goes on with what was before.

    In this process, which has imported what takes longest.
    """
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = "assert trainer.model.config.events\n".join(blocks)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(30):
        text = " ".join(f"word{(number * 7 + i * i) % 40}" for i in range(600))
        (corpus / f"{number}.txt").write_text(text)
    short = code.replace('"10min"', '"8steps"').replace("8192", "256").replace('"out", ', '"out", use_cpu=True, ')
    assert short.count("8steps") == short.count("use_cpu") == 1
    smaller = {
        "sequence_length=128)": "sequence_length=32, validation=0.1)", "hidden_size=256": "hidden_size=64",
        "intermediate_size=1024": "intermediate_size=128", "embedding_size=128": "embedding_size=32",
        "num_hidden_layers=12": "num_hidden_layers=4",
    }  # fmt: skip
    for printed, small in smaller.items():
        assert printed in short
        short = short.replace(printed, small)
    (tmp_path / "example.py").write_text(short)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py", run_name="__main__")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model"]["stock_class"] == "ElectraForPreTraining"
    assert (tmp_path / "out" / "generator" / "model.safetensors").is_file()


def test_a_comparison_of_objectives_shows_each_loss_beside_its_floor(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "model_cards")
    tables, cards = (runpy.run_path(str(ROOT / "model_cards" / f"{name}.py")) for name in ("tables", "cards"))
    report = with_objectives()
    report["energy"]["carbon_source"] = "world average"
    report["environment"]["transformers"] = "5"
    rows = tables["comparison"](report)
    assert len({row.count("|") for row in rows}) == 1
    assert "| electra, per token | 0.40" in rows[2]
    assert "| 0.4254 |" in rows[2]
    assert "| +0.011 (-0.002 to +0.024) |" in rows[2]
    text = cards["card"]("c", report["arms"][2], report, "r.json")
    assert "| Prior entropy | 0.4254" in text
    assert "| Loss of its generator (nats a masked token) | 5.7660" in text
    assert "| blimp/pll_word_l2r, difference to `baseline` | 0.0110 (-0.0020 to 0.0240) |" in text
    assert "Speed-up" not in text
    assert "Speed-up" in cards["card"]("c", report["arms"][1], report, "r.json")
