import json

import pytest

from hf_effpt.comparison.arm_losses import loss_of, margins
from hf_effpt.comparison.arms import Arm
from hf_effpt.comparison.run_grid import Run
from hf_effpt.comparison.summary import run_entry

SECTIONS = {"model": {"size": "tiny", "objective": "electra"}, "data": {"dataset": "corpus/"}}
EVALUATION = {"objective": "electra", "held_out_loss": 0.416, "floor": 0.4254, "unigram_floor": 6.2,
              "generator_loss": 5.8, "replaced_rate": 0.15, "masked_tokens": 9}  # fmt: skip


def entry_of(tmp_path, evaluation, scores=None):
    recipe = Arm("a", SECTIONS).recipe("8steps", 0, str(tmp_path))
    if evaluation is not None:
        record = {"evaluation": evaluation, "clock": {"steps": 8}}
        (tmp_path / "run.json").write_text(json.dumps(record))
        (tmp_path / "evaluation.json").write_text(json.dumps(scores or {}))
    return run_entry(Run("a", 0, 1.0, recipe), None)


def test_an_entry_has_its_objective_and_what_was_measured(tmp_path):
    entry = entry_of(tmp_path, EVALUATION)
    assert (entry["objective"], entry["held_out_loss"]) == ("electra", 0.416)
    assert entry["evaluation"] == EVALUATION
    assert margins([entry]) == [pytest.approx(0.0094)]


def test_an_entry_has_the_accounts_of_methods(tmp_path):
    assert entry_of(tmp_path, EVALUATION)["accounts"] == {}
    accounts = {"selection": {"keep": 0.5, "s_flops": 0.33, "text": "ScoreRows 12 rows."}}
    record = json.loads((tmp_path / "run.json").read_text()) | {"accounts": accounts}
    (tmp_path / "run.json").write_text(json.dumps(record))
    run = Run("a", 0, 1.0, Arm("a", SECTIONS).recipe("8steps", 0, str(tmp_path)))
    assert run_entry(run, None)["accounts"] == accounts
    assert entry_of(tmp_path / "none", None)["accounts"] == {}


def test_a_run_that_is_not_there_has_the_objective_of_its_recipe(tmp_path):
    entry = entry_of(tmp_path, None)
    assert (entry["state"], entry["objective"], entry["evaluation"]) == ("missing", "electra", {})
    assert loss_of([entry], {}) == "electra, per token"


def test_an_older_record_is_of_masked_language_modelling(tmp_path):
    entry = run_entry(Run("a", 0, 1.0, Arm("a", {"data": {"dataset": "x"}}).recipe("8steps", 0, str(tmp_path))), None)
    assert entry["objective"] == "mlm"
    (tmp_path / "run.json").write_text(
        json.dumps({"evaluation": {"held_out_loss": 5.0, "unigram_floor": 6.0}, "clock": {}})
    )
    entry = run_entry(Run("a", 0, 1.0, Arm("a", {"data": {"dataset": "x"}}).recipe("8steps", 0, str(tmp_path))), None)
    assert margins([entry]) == [1.0]


def test_a_diverged_run_leaves_no_number_that_json_lacks(tmp_path):
    entry = entry_of(tmp_path, {**EVALUATION, "held_out_loss": float("nan"), "generator_loss": float("inf")})
    assert entry["state"] == "diverged"
    assert entry["evaluation"]["generator_loss"] is None
    json.dumps(entry, allow_nan=False)


def test_the_average_of_the_fine_tuned_scores_is_a_score(tmp_path):
    scores = {"cola/mcc@default": {"value": 0.1, "notes": []}}
    average = {"name": "average@default", "value": 0.1, "note": "mean of cola"}
    entry = entry_of(tmp_path, EVALUATION, {"scores": scores, "average": average})
    assert entry["scores"] == {"cola/mcc@default": 0.1, "average@default": 0.1}
    assert entry["score_notes"] == {"average@default": "mean of cola"}
