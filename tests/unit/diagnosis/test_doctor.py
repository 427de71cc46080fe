"""`effpt doctor` and `effpt plot`: which target is what, what is looked at, and the exit code."""

import json

import numpy as np
import pytest

from hf_effpt.cli.main import main
from hf_effpt.core.errors import EffptError
from hf_effpt.diagnosis import text_facts
from hf_effpt.diagnosis.doctor import diagnose
from hf_effpt.diagnosis.loss_plot import draw_losses
from hf_effpt.diagnosis.range_test import read_range, train_range
from hf_effpt.recipe.recipe import Recipe
from tests import tiny

from .planted import FLAT, record

WORDS = [f"Document {number} has its own words, which are {number * 7} in number." for number in range(30)]


def folder_of(tmp_path, name="run", **changes):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record(**changes)))
    return str(folder)


def test_run_with_an_error_gives_exit_code_1_and_a_command(tmp_path, capsys):
    folder = folder_of(tmp_path, held_out=7.2)
    assert main(["doctor", folder]) == 1
    said = capsys.readouterr().out
    assert "error: floor\n  seen          The held-out loss 7.200 is 0.230 above the unigram floor." in said
    assert f"effpt pretrain {folder}/recipe.yaml --model.start" in said


def test_healthy_run_and_json(tmp_path, capsys):
    folder = folder_of(tmp_path)
    assert main(["doctor", folder]) == 0
    assert capsys.readouterr().out.endswith("\n\nnothing found\n")
    assert main(["doctor", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_dataset_with_splits_is_checked_against_its_validation(tmp_path):
    texts = [f"{text}\n\n" for text in WORDS]
    (tmp_path / "train.txt").write_text("".join(texts))
    (tmp_path / "validation.txt").write_text("".join([*texts[:3], "A new one has words that no other one has.\n\n"]))
    found = diagnose(str(tmp_path))
    assert found.kind == "dataset"
    assert [one.check for one in found.findings] == ["leakage"]
    assert found.figures["validation"] == "4 documents looked at, 3 of them in the training text"


def test_blank_files_are_a_finding_and_not_the_end(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    (tmp_path / "b.txt").write_text("\n  \n")
    (tmp_path / "c.txt").touch()
    (tmp_path / "d.jsonl").write_text('{"text": " "}\n')
    found = diagnose(str(tmp_path))
    assert [one.check for one in found.findings] == ["blank files"]
    assert all(name in found.findings[0].seen for name in ("b.txt", "c.txt", "d.jsonl"))
    assert "a.jsonl" not in found.findings[0].seen
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(EffptError, match="no text in it"):
        diagnose(str(tmp_path))


def test_recipe_is_checked_with_its_dataset_and_flags(tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*WORDS, *WORDS]))
    flags = ["--data.dataset", str(tmp_path / "text.jsonl"), "--training.learning_rate", "0.5"]
    found = diagnose("tiny", flags)
    assert found.kind == "recipe"
    assert [one.check for one in found.findings] == ["doubles", "learning rate", "batch"]
    assert "--data.dataset" in found.findings[1].fix  # of the text that it was given
    with pytest.raises(EffptError, match="goes with a recipe"):
        diagnose(str(tmp_path / "text.jsonl"), flags)


def test_only_so_many_documents_are_read_from_each_file(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name} {t}"}) + "\n" for t in WORDS))
    monkeypatch.setattr(text_facts, "MAX_DOCUMENTS", 10)
    figures = diagnose(str(tmp_path)).figures
    assert figures["text"].startswith("10 documents, 0.0 MB looked at of about")


def test_real_run_before_and_after_it_has_finished(tmp_path):
    trainer = tiny.trainer(tmp_path / "run", saved=[2], budget="4steps")
    trainer.add_callback(tiny.StopAfter(2))
    trainer.train()
    assert [one.check for one in diagnose(str(tmp_path / "run")).findings] == ["unfinished"]
    trainer.evaluate()
    trainer.save_model()
    found = diagnose(str(tmp_path / "run"))
    assert "50% of the budget" in found.figures["spent"]
    assert "unigram floor" in found.figures["held-out loss"]
    assert draw_losses([tmp_path / "run"], tmp_path / "loss.png").stat().st_size > 5000


def test_a_checkpoint_and_a_comparison_are_no_texts(tmp_path, capsys):
    trainer = tiny.trainer(tmp_path / "run", saved=[1], layers=1, budget="2steps")
    trainer.train()
    assert main(["doctor", str(tmp_path / "run" / "checkpoint-1")]) == 2
    assert f"is a checkpoint; give the folder of its run, {tmp_path / 'run'}" in capsys.readouterr().err
    arm = tmp_path / "report" / "runs" / "a" / "seed-0" / "budget-1"
    arm.mkdir(parents=True)
    (tmp_path / "report" / "plan.json").write_text("{}")
    for command in ("doctor", "plot"):
        assert main([command, str(tmp_path / "report")]) == 2
        said = capsys.readouterr().err
        assert "is a comparison" in said
        assert str(arm) in said


def test_a_run_that_diverged_in_a_comparison_is_read(tmp_path):
    history = [{"loss": loss, "step": step} for step, loss in enumerate([5.0, 4.0, None, None], start=1)]
    clock = {"unit": "steps", "budget": 10, "steps": 4}
    (tmp_path / "diverged.json").write_text(json.dumps({"history": history, "clock": clock}))
    Recipe.load("tiny").save(tmp_path / "recipe.yaml")
    (found, _) = diagnose(str(tmp_path)).findings
    assert (found.check, found.severity) == ("divergence", "error")
    assert found.seen == "2 of 4 logged losses are no number, the first at step 3."
    assert found.fix.startswith(f"effpt pretrain {tmp_path}/recipe.yaml --training.learning_rate")


def test_several_runs_are_plotted_together_unless_their_losses_differ(tmp_path, capsys):
    one, other = folder_of(tmp_path), folder_of(tmp_path, "other", losses=FLAT)
    assert main(["plot", one, other, "--out", str(tmp_path / "both.svg")]) == 0
    assert "both.svg" in capsys.readouterr().out
    drawn = (tmp_path / "both.svg").read_text()
    assert all(name in drawn for name in ("<!-- run -->", "<!-- other -->", "<!-- unigram floor -->"))
    electra = folder_of(tmp_path, "electra", evaluation={"objective": "electra", "held_out_loss": 0.4})
    assert main(["plot", one, electra]) == 2
    assert "The losses of these runs, of mlm and electra, have scales of their own" in capsys.readouterr().err


def test_range_test_trains_at_growing_rates_until_the_loss_is_high(tmp_path):
    rates, losses = train_range(tiny.trainer(tmp_path, budget="24steps"))
    assert rates[0] == pytest.approx(1e-5)
    assert 2 < len(rates) == len(losses) <= 24
    assert losses.max() > losses[0] + 1  # a rate of 1 is too high for any model


@pytest.mark.parametrize("ends", ["rises", "no number"])
def test_range_is_read_from_the_curve(ends):
    rates = np.geomspace(1e-5, 1.0, 100)
    falling = 7 - 2 / (1 + np.exp(-4 * np.log(rates / 1e-3)))  # quickest at 1e-3
    losses = falling + (np.where(rates > 0.05, 3.0, 0.0) if ends == "rises" else np.where(rates > 0.05, np.nan, 0.0))
    quickest, diverges = read_range(rates, losses)
    assert quickest == pytest.approx(1e-3, rel=0.3)
    assert diverges == pytest.approx(0.05, rel=0.7)
    assert read_range(rates, falling)[1] is None
