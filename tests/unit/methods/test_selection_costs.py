"""What a run says of the cost of selection: the cost law by hand, and a sentence that fits the strategy."""

import pytest

from hf_effpt.core.registry import METHODS
from hf_effpt.core.row_method import CostReport
from hf_effpt.methods.selection.cost import cost_report
from hf_effpt.methods.selection.scoring import cost_key
from hf_effpt.methods.selection.strategies import STRATEGIES
from hf_effpt.methods.selection.strategy import ResolvedSettings
from tests import tiny


def told(
    strategy="least_confidence", counts=(200, 200, 100), flops=400.0, own=100.0, before=0.0, charged=True, keep=0.5
):
    spent = CostReport(flops, flops, own, own, before, before, charged)
    return cost_report(ResolvedSettings(keep=keep), strategy, STRATEGIES[strategy].picks_rows, counts, spent)


def test_the_cost_law_by_hand():
    """100 of 400 FLOPs went into 200 looks, 300 into 100 rows: 0.5 and 3 each."""
    found = told()
    assert found["s_flops"] == found["s_seconds"] == pytest.approx(0.5 / 3)
    assert found["break_even_flops"] == pytest.approx(1 + 2 * 0.5 / 3)
    assert found["prepaid_flops"] == 0.0
    assert "learned from 100 of 200 rows" in found["text"]
    assert "more than 1.33 (1.33) times as much as a random one" in found["text"]


def test_what_was_spent_before_is_no_part_of_a_look_but_is_said():
    found = told("rho", own=180.0, before=80.0)
    assert found["s_flops"] == pytest.approx(0.5 / 2.2)
    assert found["prepaid_flops"] == pytest.approx(0.2)
    assert "had cost 80 FLOPs before, 20% of the run" in found["text"]


def test_of_a_run_that_was_not_charged_all_flops_are_training():
    found = told(flops=300.0, charged=False)
    assert found["s_flops"] == pytest.approx(0.5 / 3)
    assert "which the clock did not pay for" in found["text"]


def test_where_all_rows_are_kept_a_step_costs_one_and_s():
    found = told("token_selection", counts=(100, 0, 100), flops=330.0, own=30.0, keep=0.6)
    assert found["break_even_flops"] == pytest.approx(1 + found["s_flops"]) == pytest.approx(1.1)
    assert "kept all rows" in found["text"]
    assert "random" not in found["text"]


def test_rows_by_lot_need_no_gain():
    assert told("random", counts=(200, 0, 100), own=0.0)["text"].endswith("drawn by lot.")


def test_a_run_that_has_picked_nothing_says_why():
    assert "has picked no rows: it does so between 0.5 and 0.9" in told(counts=(100, 0, 100))["text"]


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_card_is_told_what_the_strategy_does(strategy):
    holdout = {} if STRATEGIES[strategy].compares is None else {"holdout": "there"}
    method = METHODS["selection"](strategy=strategy, **holdout)
    assert method.describe.startswith(f"`{strategy}`. ")
    assert method.describe.endswith(".")
    assert (method.cited is None) == (strategy != "selective_backprop")


def key_of(strategy, **settings):
    return cost_key(tiny.model({"selection": {"strategy": strategy, **settings}}).bert.selector.strategy)


@pytest.mark.parametrize("strategy", ["deep_bayesian", "perceptron_ensemble", "selective_backprop"])
def test_scoring_has_one_time_whatever_the_corpus_and_the_schedule(strategy):
    other = {"rows": 96, "keep": 0.25, "start": 0.1, "end": 0.8, "interrupt": 0, "warmup": 4}
    assert key_of(strategy, rows=48) == key_of(strategy, **other)


def test_work_of_scoring_that_differs_has_times_of_its_own():
    bayesian = [{}, {"passes": 3}, {"level": "full"}, {"rule": "bald"}, {"num_score_positions": 1}]
    keys = [key_of("deep_bayesian", **settings) for settings in [*bayesian, {"scorer": "first_layer"}]]
    keys += [key_of("least_confidence"), key_of("least_confidence", rule="margin")]
    keys += [key_of("core_set", scorer=scorer) for scorer in ("full", "first_layer", "embedding")]
    keys += [key_of("selective_backprop", scorer=scorer) for scorer in ("full", "first_layer")]
    assert len(set(keys)) == len(keys) == 13
