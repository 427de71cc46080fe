"""What picking rows has to gain, and what it has gained: hand-computed."""

import json
import math

import pytest

from hf_effpt.comparison.cost_law import cost_law
from hf_effpt.comparison.markdown import markdown
from hf_effpt.comparison.page import write_page
from hf_effpt.comparison.report_tables import DASH
from hf_effpt.comparison.speed import NO_SPEED, speed_up
from hf_effpt.comparison.summary import losses_by_budget, summarized
from hf_effpt.core.clock import Clock
from tests.unit.comparison.records import BUDGET, at, runs
from tests.unit.comparison.test_markdown import row

CLOCK = Clock("seconds", BUDGET)
BASE = {0.5: [6.6, 6.7, 6.8], 1.0: [6.0, 6.1, 6.2]}
GOOD = {0.5: [6.1, 6.2, 6.3], 1.0: [5.9, 6.0, 6.1]}  # at the baseline's loss after 1 / sqrt(2) of the budget
NEEDED, GAIN, S = "Gain in samples needed, 1 + s/k", "Gain in samples it had", "Cost to score a row, s"


def account(**changes):
    """That of a run in which each step scores 64 rows and keeps 32."""
    found = {"keep": 0.5, "seen": 6400, "scored": 6400, "trained": 3200, "s_flops": 0.33, "s_seconds": 0.4}
    return {"selection": found | changes}


def of(losses, **changes):
    return at(losses, accounts=account(**changes))


def law(losses=GOOD, base=BASE, unit="seconds", free=False, of_base=None, **changes):
    entries, baseline = of(losses, **changes), at(base, accounts=of_base or {})
    found = speed_up(losses_by_budget(entries, CLOCK), losses_by_budget(baseline, CLOCK), BUDGET)
    return cost_law(entries, baseline, found, unit, free)


def test_the_gain_in_samples_is_the_speed_up_times_what_a_row_costs():
    found = law()
    assert found["s"] == pytest.approx(0.4)
    assert found["needed"] == found["while_picking"] == pytest.approx(1.8)
    assert found["needed_note"] == ""
    assert found["gain"]["value"] == pytest.approx(1.8 * math.sqrt(2))
    assert (found["gain"]["low"], found["gain"]["high"]) == pytest.approx([1.8 * math.sqrt(2)] * 2)
    assert found["gain"]["bound"] is None


def test_a_budget_in_flops_goes_by_flops_and_others_by_time():
    assert law(unit="flops")["needed"] == pytest.approx(1.66)
    for unit in ("seconds", "reference_seconds", "joules"):
        assert law(unit=unit)["needed"] == pytest.approx(1.8)


def test_what_was_spent_before_the_first_step_raises_what_is_needed():
    found = law(prepaid_seconds=0.25)
    assert found["needed"] == pytest.approx(1.8 / 0.75)
    assert found["needed_note"] == "1.80, and 25% of the budget was spent before the first step"
    assert found["gain"]["value"] == pytest.approx(1.8 / 0.75 * math.sqrt(2))


def test_an_arm_that_is_behind_is_measured_by_shorter_runs_of_the_baseline():
    """It reaches the baseline's loss in no budget, so that what counts is where the baseline reaches the arm's."""
    found = law(losses={1.0: [6.3, 6.4, 6.5]})
    assert found["gain"]["value"] == pytest.approx(1.8 / math.sqrt(2))


def test_the_mean_over_runs_is_taken():
    entries = [*of({1.0: [5.9]}, s_seconds=0.2), *of({1.0: [5.9]}, s_seconds=0.4)]
    found = cost_law(entries, at(BASE), NO_SPEED | {"speed_up_note": "x"}, "seconds", False)
    assert (found["s"], found["needed"]) == (pytest.approx(0.3), pytest.approx(1.6))


def test_where_only_some_steps_pick_rows_the_run_costs_less():
    found = law(seen=4800, scored=3200, trained=3200)  # every second step: 1 + 0.4 * 3200 / 3200
    assert found["needed"] == pytest.approx(1.4)
    assert found["needed_note"] == "1.80 in the steps that pick rows"
    assert found["gain"]["value"] == pytest.approx(1.4 * math.sqrt(2))


def test_an_account_without_counts_is_taken_to_pick_in_every_step():
    assert law(scored=None, seen=None)["needed"] == law(trained=0)["needed"] == pytest.approx(1.8)


def test_where_no_row_is_scored_the_cost_is_of_each_row_looked_at():
    assert law(scored=0, s_seconds=0.02)["needed"] == pytest.approx(1.04)


def test_what_is_kept_of_something_else_than_rows_skips_none():
    found = law(seen=3200, scored=3200, trained=3200)  # half of the tokens of each row, say
    assert found["needed"] == found["while_picking"] == pytest.approx(1.4)
    assert law(seen=3200, scored=3200, trained=3200, unit="tokens")["needed"] == 1.0


def test_at_equal_clock_the_arm_gains_what_it_needs_if_it_is_just_as_fast():
    found = law({0.5: [6.6, 6.7, 6.8], 1.0: [6.0, 6.1, 6.2 - 1e-12]})
    assert found["gain"]["value"] == pytest.approx(found["needed"])


def test_a_gain_is_a_bound_where_its_speed_up_is():
    least = law({0.5: [5.9, 6.0, 6.1], 1.0: [5.0, 5.1, 5.2]})["gain"]
    assert least == {"value": pytest.approx(3.6), "low": None, "high": None, "bound": "at least"}
    most = law({0.5: [6.9, 7.0, 7.1], 1.0: [6.6, 6.7, 6.8]})["gain"]  # all it reaches the baseline has at half
    assert most == {"value": pytest.approx(0.9), "low": None, "high": None, "bound": "at most"}
    slower = law({0.5: [6.9, 7.0, 7.1], 1.0: [6.3, 6.4, 6.5]})["gain"]
    assert slower == dict.fromkeys(("value", "low", "high"), pytest.approx(1.8 * math.sqrt(0.5))) | {"bound": None}


def test_without_a_speed_up_there_is_no_gain_but_its_reason():
    found = law({1.0: GOOD[1.0]})
    assert found["gain"] is None
    assert found["gain_note"].startswith("not measured: it takes runs on shorter budgets")
    assert found["needed"] == pytest.approx(1.8)


def test_a_free_arm_needs_no_gain():
    found = law(free=True)
    assert (found["needed"], found["s"]) == (1.0, pytest.approx(0.4))
    assert found["needed_note"] == "its clock does not pay for scoring, or it would be 1.80"


def test_steps_pay_for_nothing_and_tokens_for_each_row_looked_at():
    assert law(unit="steps")["needed"] == 1.0
    assert law(unit="tokens")["needed"] == 2.0
    assert law(unit="tokens", seen=4800)["needed"] == 1.5
    assert law(unit="tokens", trained=None)["needed"] == 2.0


def test_random_rows_cost_nothing_to_score():
    found = law(s_flops=0.0, s_seconds=0.0, scored=0)
    assert (found["needed"], found["needed_note"]) == (1.0, "")
    assert found["gain"]["value"] == pytest.approx(math.sqrt(2))


def test_what_was_not_recorded_is_not_made_up():
    found = law(s_seconds=None)
    assert found["s"] is found["needed"] is found["gain"] is None
    assert "not recorded" in found["gain_note"]
    assert law(s_seconds=None, unit="steps")["needed"] == 1.0
    assert cost_law(at(GOOD), at(BASE), NO_SPEED | {"speed_up_note": None}, "seconds", False) is None
    assert cost_law(at(GOOD, accounts={"tnf": {"text": "x"}}), at(BASE), NO_SPEED, "seconds", False) is None


def test_no_gain_in_samples_is_given_against_a_baseline_that_scores_rows():
    found = law(of_base=account())
    assert found["gain"] is None
    assert "baseline" in found["gain_note"]
    assert law(of_base=account(scored=0, s_flops=0.0, s_seconds=0.0))["gain"] is not None


def report(of_free=(), **arms):
    recipes = {name: {"methods": {}} for name in arms}
    found = summarized(arms, recipes, CLOCK, free=of_free)
    json.dumps(found, allow_nan=False)
    return found


def test_the_tables_have_the_cost_the_gain_needed_and_the_gain_there_was(tmp_path):
    short = of({0.5: [5.9, 6.0, 6.1], 1.0: [5.0, 5.1, 5.2]})
    found = report(base=at(BASE), good=of(GOOD), short=short, partly=of(GOOD, scored=3200), whole=of({1.0: GOOD[1.0]}))
    text = markdown(found)
    assert row(text, S) == [f"{DASH} (it scores no rows)", *["0.400 (by time)"] * 4]
    assert row(text, NEEDED)[1:4] == ["1.80x", "1.80x", "1.40x (1.80 in the steps that pick rows)"]
    assert row(text, GAIN)[:3] == [f"{DASH} (it scores no rows)", "2.55x (2.55x to 2.55x)", "at least 3.60x"]
    assert row(text, GAIN)[4].startswith(f"{DASH} (not measured: it takes runs on shorter budgets")
    write_page(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (NEEDED, GAIN, "2.55x", "at least 3.60x", "1.80 in the steps that pick rows"):
        assert words in page, words


def test_the_tables_of_a_free_arm_and_of_a_comparison_without_accounts():
    text = markdown(report(["free"], base=at(BASE), free=of(GOOD)))
    assert row(text, NEEDED)[1] == "1.00x (its clock does not pay for scoring, or it would be 1.80)"
    assert row(text, GAIN)[1].startswith(f"{DASH} (not given: its clock does not pay for its methods")
    assert GAIN not in markdown(report(base=at(BASE), good=at(GOOD)))


def test_an_unknown_cost_is_a_dash_in_the_tables():
    text = markdown(report(base=runs(BASE[1.0]), good=runs(GOOD[1.0], accounts=account(s_seconds=None))))
    assert row(text, S)[1] == f"{DASH} (not recorded)"
    assert row(text, NEEDED)[1] == f"{DASH} (what it costs to score a row was not recorded)"
