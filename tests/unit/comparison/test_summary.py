import json
import math

import numpy as np
import pytest

from hf_effpt.comparison.speed import speed_up
from hf_effpt.comparison.summary import summarized
from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from tests.unit.comparison.records import BUDGET, at, entry, runs

BASE = [6.0, 6.1, 6.2]


def summarize(settings=None, **arms):
    recipes = {name: {"methods": {}, "data": {}} for name in arms}
    return summarized(arms, recipes, Clock("seconds", BUDGET), command="effpt compare …", **(settings or {}))


def arm(report, name):
    return next(each for each in report["arms"] if each["name"] == name)


def test_pairs_by_seed_and_says_who_pays():
    report = summarize(
        base=runs(BASE), good=runs([5.9, 6.01, 6.09]), bad=runs([6.1, 6.19, 6.31]), same=runs([6.01, 6.08, 6.2])
    )
    assert arm(report, "good")["verdict"]["label"] == "better"
    assert arm(report, "bad")["verdict"]["label"] == "worse"
    assert arm(report, "same")["verdict"]["label"] == "no difference shown"
    assert arm(report, "base")["verdict"]["label"] == "baseline"
    assert arm(report, "good")["difference"]["mean"] == pytest.approx(-0.1)
    assert arm(report, "good")["difference"]["p_holm"] > arm(report, "good")["difference"]["p"]
    assert arm(report, "base")["difference"] is None
    assert report["baseline"] == "base"
    assert report["title"] == "good, bad, same against base, 1 min 40 s each"
    json.dumps(report, allow_nan=False)


def test_two_seeds_give_no_verdict():
    report = summarize(base=runs(BASE[:2]), good=runs([5.0, 5.1]))
    assert arm(report, "good")["verdict"]["label"] == "no verdict"
    assert "fewer than 3" in arm(report, "good")["verdict"]["text"]


def test_a_diverged_run_is_named_and_not_averaged_away():
    diverged = [entry(0, 5.9), entry(1, 5.9), entry(2, None, state="diverged", note="its held-out loss is not finite")]
    report = summarize(base=runs([*BASE, 6.3]), bad=[*diverged, entry(3, 5.9)])
    assert arm(report, "bad")["verdict"] == {"label": "no verdict", "text": "No verdict: seed 2 has diverged."}
    assert any("bad, seed 2, 100% of the budget: diverged" in note for note in report["notes"])
    report = summarize(base=[*diverged, entry(3, 6.0)], good=runs([5.0] * 4))
    assert "in the baseline" in arm(report, "good")["verdict"]["text"]


def test_failed_and_missing_runs_are_said():
    report = summarize(
        base=runs(BASE), slow=[entry(0, None, state="failed", note="out of memory"), entry(1, None, state="missing")]
    )
    assert "slow, seed 0, 100% of the budget: failed (out of memory)" in report["notes"]
    assert "slow, seed 1, 100% of the budget: missing" in report["notes"]
    assert arm(report, "slow")["summary"]["final_loss"] is None


def test_no_finished_baseline_is_an_error_that_says_why():
    failed = [entry(seed, None, state="failed", note="out of memory") for seed in range(3)]
    with pytest.raises(EffptError, match=r"No run of the baseline `base` has finished.*out of memory"):
        summarize(base=failed, good=runs(BASE))


def test_other_data_gives_no_verdict():
    report = summarize(base=runs(BASE), other=runs([5.0, 5.1, 5.2], data=["beef", 128, 999]))
    assert "other text" in arm(report, "other")["verdict"]["text"]


def test_a_comparison_in_which_nothing_was_learned_is_void():
    report = summarize(base=runs([6.9, 6.8, 6.85]), good=runs([6.0, 6.0, 6.1]))
    assert "0.150 nats below the unigram floor" in report["void"]
    assert arm(report, "good")["verdict"]["label"] == "no verdict"
    assert summarize(base=runs([6.7, 6.7, 6.7]), good=runs(BASE))["void"] is None


def test_what_is_not_equal_is_noted():
    late = entry(0, 6.0)
    late["clock"] = late["clock"] | {"seconds": 105.0}
    early = entry(1, 6.0)
    early["clock"] = early["clock"] | {"seconds": 99.0}
    hot = entry(2, 6.0, final_learning_rate=1e-4)
    notes = summarize(base=[late, early, hot])["notes"]
    assert any("seed 0" in note and "5.0% over" in note for note in notes)
    assert any("seed 1" in note and "ended at 99.0%" in note for note in notes)
    assert any("seed 2" in note and "not fully decayed" in note for note in notes)
    assert not summarize(base=runs(BASE))["notes"]
    (said,) = summarize(base=runs(BASE, reference_faults=["7 layers take less than 6"]))["notes"]  # once, not by run
    assert said == "reference times: 7 layers take less than 6"


def test_a_score_undefined_for_one_seed_has_no_mean():
    scored = [entry(seed, 6.0, scores={"cola/mcc@default": value}) for seed, value in enumerate([0.1, None, 0.3])]
    found = arm(summarize(base=scored), "base")["summary"]["scores"]["cola/mcc@default"]
    assert found["mean"] is None
    assert found["note"] == "undefined for seed 1"


def test_notes_of_scores_reach_the_reader():
    note = {"cola/mcc@default": "one class predicted"}
    report = summarize(base=[entry(0, 6.0, scores={"cola/mcc@default": 0.0}, score_notes=note)])
    assert report["notes"] == ["cola/mcc@default: one class predicted (base, seed 0)"]
    report = summarize(
        base=[entry(seed, 6.0, scores={"cola/mcc@default": 0.0}, score_notes=note) for seed in range(3)]
    )
    assert report["notes"] == ["cola/mcc@default: one class predicted (3 runs)"]  # and not three times


def test_a_better_loss_with_a_worse_score_says_both():
    def scored(losses, values):
        return [
            entry(s, x, scores={"blimp/pll_word_l2r": v}) for s, (x, v) in enumerate(zip(losses, values, strict=True))
        ]

    report = summarize(base=scored(BASE, [0.60, 0.61, 0.62]), good=scored([5.9, 6.01, 6.09], [0.55, 0.561, 0.569]))
    text = arm(report, "good")["verdict"]["text"]
    assert text.startswith("It pays")
    assert "But blimp/pll_word_l2r is lower by 0.0500" in text


def test_where_there_is_no_verdict_no_figure_is_compared_either():
    report = summarize(base=runs(BASE), other=runs([5.0, 5.1, 5.2], data=["beef", 128, 999]))
    found = arm(report, "other")
    assert found["difference"] is None
    assert found["summary"]["speed_up"] is None
    assert "other text" in found["summary"]["speed_up_note"]
    assert found["summary"]["final_loss"]["mean"] == pytest.approx(5.1)


def test_a_learning_rate_that_has_not_decayed_gives_no_verdict():
    report = summarize(base=runs(BASE), hot=runs([5.0, 5.1, 5.2], final_learning_rate=9e-4))
    assert "had not decayed" in arm(report, "hot")["verdict"]["text"]


def test_an_arm_that_does_not_pay_is_shown_and_not_judged():
    good = [5.9, 6.01, 6.09]
    alone = summarize(base=runs(BASE), good=runs(good))
    report = summarize({"free": ["free"]}, base=runs(BASE), good=runs(good), free=runs(good))
    assert "does not pay" in arm(report, "free")["verdict"]["text"]
    assert arm(report, "good")["difference"] == arm(alone, "good")["difference"]  # it is not one of Holm's family
    assert arm(report, "free")["free"]


def test_runs_of_different_machines():
    report = summarize(base=runs(BASE), other=runs([5.0, 5.1, 5.2], environment={"device": "another"}))
    assert "different devices" in arm(report, "other")["verdict"]["text"]
    assert any("2 different environments" in note for note in report["notes"])


def test_an_evaluation_that_failed_is_said_and_not_called_undefined():
    scored = [entry(seed, 6.0, scores={"cola/mcc@default": 0.1}) for seed in range(2)]
    report = summarize(base=[*scored, entry(2, 6.0, note="failed (killed by SIGKILL)")])
    assert arm(report, "base")["summary"]["scores"]["cola/mcc@default"]["note"] == "not evaluated for seed 2"
    assert any("its evaluation failed (killed by SIGKILL)" in note for note in report["notes"])


def test_a_half_run_never_stands_for_a_whole_one():
    broken = [entry(0, None, state="failed", note="x"), *runs(BASE)[1:], *at({0.5: [1.0, 1.0, 1.0]})]
    report = summarize(base=runs(BASE), broken=broken)
    assert arm(report, "broken")["summary"]["final_loss"]["n"] == 2
    assert arm(report, "broken")["verdict"]["label"] == "no verdict"


def test_seeds_that_were_added_after_a_look_are_said():
    report = summarize({"planned": {"seeds": 3}}, base=runs([*BASE, 6.3]))
    assert any("began with 3 seeds and now has 4" in note for note in report["notes"])
    assert not summarize({"planned": {"seeds": 3}}, base=runs(BASE))["notes"]


def test_a_budget_in_steps_is_rounded_before_it_is_compared():
    half = entry(0, 6.0, 0.5, clock={"steps": 8, "tokens": 1, "flops": 1.0, "seconds": 1.0, "joules": None})
    recipes = {"base": {"methods": {}, "data": {}}}
    whole = entry(0, 6.0, clock={"steps": 15, "tokens": 1, "flops": 1.0, "seconds": 1.0, "joules": None})
    assert not summarized({"base": [half, whole]}, recipes, Clock("steps", 15))["notes"]


def test_energy_and_costs_are_means_over_runs():
    report = summarize(base=runs(BASE, costs={"selection": 2.0, "tnf": 1.0}))
    found = arm(report, "base")["summary"]
    assert found["kwh"] == pytest.approx(0.1)
    assert found["co2e"] == 47.5
    assert found["method_seconds"] == 3.0
    unknown = [{**each, "clock": each["clock"] | {"joules": None}, "co2e": None} for each in runs(BASE)]
    found = arm(summarize(base=unknown), "base")["summary"]
    assert (found["kwh"], found["co2e"]) == (None, None)


def losses(entries):
    found = {}
    for each in entries:
        found.setdefault(each["fraction"] * BUDGET, {})[each["seed"]] = each["held_out_loss"]
    return found


def test_speed_up_by_separate_runs():
    base = losses(at({0.5: [6.6, 6.7, 6.8], 1.0: BASE}))
    # the arm reaches the baseline's loss of each seed halfway, on the scale of logarithms, between its two budgets
    quick = losses(at({0.5: [6.1, 6.2, 6.3], 1.0: [5.9, 6.0, 6.1]}))
    found = speed_up(quick, base, BUDGET)
    assert found["budget_to_baseline_loss"]["value"] == pytest.approx(math.sqrt(50 * 100))
    assert found["speed_up"]["value"] == pytest.approx(math.sqrt(2))
    assert found["speed_up"]["low"] == pytest.approx(math.sqrt(2))
    assert found["speed_up_note"] is None


def test_an_arm_that_is_slower_is_measured_by_the_baselines_shorter_runs():
    base = losses(at({0.5: [6.6, 6.7, 6.8], 1.0: BASE}))
    slow = losses(at({0.5: [6.9, 7.0, 7.1], 1.0: [6.6, 6.7, 6.8]}))
    found = speed_up(slow, base, BUDGET)
    assert found["budget_to_baseline_loss"] is None
    assert found["speed_up"]["value"] == 0.5
    assert "at least" in found["speed_up_note"]
    between = losses(at({0.5: [6.9, 7.0, 7.1], 1.0: [6.3, 6.4, 6.5]}))
    found = speed_up(between, base, BUDGET)
    for name in ("value", "low", "high"):
        assert found["speed_up"][name] == pytest.approx(math.sqrt(0.5))
    assert "not reached" in found["speed_up_note"]


def test_the_interval_of_a_speed_up_takes_the_seeds_in_which_it_was_sooner_and_those_in_which_it_was_not():
    base = losses(at({0.5: [6.6, 6.7, 6.8], 1.0: BASE}))
    mixed = losses(at({0.5: [6.5, 7.0, 7.1], 1.0: [5.9, 6.4, 6.5]}))  # by seed 2 ** (1 / 6), 2 ** -0.5, 2 ** -0.5
    found = speed_up(mixed, base, BUDGET)
    logs = np.array([1 / 6, -1 / 2, -1 / 2]) * math.log(2)
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # the 97.5 % quantile of t with 2 degrees of freedom
    assert found["speed_up"]["low"] == pytest.approx(math.exp(logs.mean() - half), rel=1e-4)
    assert found["speed_up"]["high"] == pytest.approx(math.exp(logs.mean() + half), rel=1e-4)
    assert found["speed_up"]["bound"] is None
    assert found["budget_to_baseline_loss"] is None
    # a seed whose longer run of the baseline is worse says nothing
    base[0.5 * BUDGET][2] = 6.1
    found = speed_up(mixed, base, BUDGET)
    assert found["speed_up"]["value"] < 1
    assert found["speed_up"]["low"] is None
    assert "the baseline was sooner; no interval: some seeds" in found["speed_up_note"]


def test_the_interval_of_equal_arms_of_other_slopes_covers_1():
    """Had each seed the curve of whichever arm it finds behind, the mean would be off."""
    draw, covered = np.random.default_rng(0), 0
    for _ in range(400):
        noise = draw.normal(scale=0.03, size=(4, 20))
        base = losses(at({0.5: list(6.5 + noise[0]), 1.0: list(6.0 + noise[1])}, seeds=range(20)))
        arm = losses(at({0.5: list(6.2 + noise[2]), 1.0: list(6.0 + noise[3])}, seeds=range(20)))
        found = speed_up(arm, base, BUDGET)["speed_up"]
        covered += found["low"] <= 1 <= found["high"]
    assert 0.93 < covered / 400 < 0.97


def test_speed_up_beyond_what_was_run_is_a_bound():
    base = losses(at({0.5: [6.6, 6.7, 6.8], 1.0: BASE}))
    found = speed_up(losses(at({0.5: [5.9, 6.0, 6.1], 1.0: [5.0, 5.1, 5.2]})), base, BUDGET)
    assert found["speed_up"]["value"] == 2.0
    assert found["speed_up_note"].startswith("at least 2.00x")


def test_speed_up_leaves_out_budgets_that_a_seed_lacks():
    base = losses(at({0.5: [6.6, 6.7, 6.8], 1.0: BASE}))
    lacking = losses(at({0.5: [6.1, 6.2, 6.3], 1.0: [5.9, 6.0, 6.1]}))
    del lacking[0.5 * BUDGET][1]
    assert speed_up(lacking, base, BUDGET)["speed_up"] is None


def test_speed_up_needs_shorter_runs():
    found = speed_up(losses(runs([5.9, 6.0, 6.1])), losses(runs(BASE)), BUDGET)
    assert found["speed_up"] is None
    assert "--fractions" in found["speed_up_note"]
