"""Forecasts by known rates, and the law of the loss."""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.planning.forecasting import forecast, traits_of
from hf_effpt.planning.law import EVIDENCE, LossLaw, Traits, fit, loss_law
from hf_effpt.planning.measurement import Measurement
from hf_effpt.planning.predictability import measure_text
from hf_effpt.planning.report import report, with_text
from hf_effpt.recipe.recipe import Recipe
from tests import tiny

MEASURED = Measurement(
    device="cpu (x86_64)", steps=19, tokens_per_second=1000.0, flops_per_token=1e6, start_seconds=5.0, start_flops=2e6,
    step_tokens=1024, parameters=1_450_752, layers=2, width=128, vocabulary=8192, text_tokens=1e6, watts=4.0,
    energy="estimated from CPU time", peak_bytes=800_000_000, floor=7.0, predictability=0.14,
)  # fmt: skip
FAST = Traits("modernbert", True, True, True, 8192, 1024, 2, 128)
BERT = Traits("bert", False, False, True, 8192, 4096, 2, 128)


@pytest.mark.parametrize(
    ("budget", "tokens", "seconds"),
    [
        ("105s", 100_000, 105),
        ("105reference_seconds", 100_000, 105),
        ("420J", 100_000, 105),
        ("100000tokens", 100_000, 105),
        ("100steps", 102_400, 107.4),
        ("100002000000flops", 100_000, 105),
    ],
)
def test_tokens_and_time_of_each_kind_of_budget(budget, tokens, seconds):
    found = forecast(MEASURED, Clock.parse(budget), None)
    assert (found.tokens, found.seconds) == pytest.approx((tokens, seconds))
    assert found.passes == pytest.approx(tokens / 1e6)
    assert found.kwh == pytest.approx(seconds * 4 / 3.6e6)
    assert found.flops == pytest.approx(tokens * 1e6 + 2e6)
    assert found.loss is None


def test_a_budget_that_the_start_takes_or_that_nobody_can_tell_is_refused():
    with pytest.raises(EffptError, match="The start of this recipe takes 5 s, all of the budget of 4 seconds"):
        forecast(MEASURED, Clock.parse("4s"), None)
    with pytest.raises(EffptError, match="power of cpu"):
        forecast(replace(MEASURED, watts=None), Clock.parse("1kJ"), None)


def test_the_law_gives_back_a_power_that_its_evidence_follows():
    runs = [
        {**vars(traits), "tokens": tokens, "floor": 7.0, "predictability": 0.2,
         "losses": [7.0 * math.exp(-0.2 * (0.5 + slope * math.log10(tokens / 1e6)))] * 3}
        for traits, slope in ((BERT, 0.2), (replace(BERT, vocabulary=2048), 0.2), (FAST, 2.0))
        for tokens in (1e6, 2e6, 4e6)
    ]  # fmt: skip
    law = fit(runs)
    found = law.forecast(FAST, 3e6, 6.0, 0.3)
    assert found.value == pytest.approx(6.0 * math.exp(-0.3 * (0.5 + 2.0 * math.log10(3))))
    assert found.outside == ()


@pytest.mark.parametrize("traits", [FAST, BERT])
def test_a_forecast_widens_outside_its_evidence_and_says_so(traits):
    law = loss_law()
    least, most = law.tokens[traits.backbone]
    inside, far = (law.forecast(traits, tokens, 7.0, 0.14) for tokens in (most, 50 * most))
    assert inside.low < inside.value < inside.high < 7.0
    assert inside.outside == ()
    assert far.value < inside.value
    assert far.high - far.low > inside.high - inside.low
    assert f"{least / 1e6:.2g} to {most / 1e6:.2g} million tokens" in far.outside
    large = law.forecast(replace(traits, layers=12, width=768), most, 7.0, 0.14)
    assert large.high - large.low > 1.5 * (inside.high - inside.low)
    assert large.outside == ("2 to 4 layers", "128 to 192 width")
    assert 0 < law.forecast(traits, 1e13, 7.0, 0.14).value < 7.0


def test_the_interval_holds_nine_of_ten_runs_of_arms_that_the_fit_had_not_seen():
    runs, inside = json.loads(EVIDENCE.read_text())["runs"], []
    for number, run in enumerate(runs):
        traits = Traits(**{key: run[key] for key in vars(FAST)})
        others: LossLaw = fit(runs[:number] + runs[number + 1 :])
        found = others.forecast(traits, run["tokens"], run["floor"], run["predictability"])
        inside += [found.low <= loss <= found.high for loss in run["losses"]]
    assert np.mean(inside) >= 0.9


def test_the_evidence_is_that_of_the_results_files():
    script = runpy.run_path(str(Path(__file__).parents[3] / "model_cards" / "evidence.py"))
    assert json.loads(EVIDENCE.read_text()) == script["evidence"](), "run `python model_cards/evidence.py`"


def test_predictability_is_that_of_the_pairs_of_a_text():
    ordered = measure_text(tiny.rows(400), tiny.rows(40, seed=1), tiny.VOCAB, [0, 2, 3])
    draw = np.random.default_rng(0)
    shuffled = tiny.rows(400).map(lambda row: {"input_ids": draw.permutation(row["input_ids"])})
    assert ordered.floor == pytest.approx(math.log(tiny.VOCAB - 5), rel=0.05)
    assert ordered.predictability > 0.8
    assert measure_text(shuffled, shuffled, tiny.VOCAB, [0, 2, 3]).saved < 0.5 * ordered.saved


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model.objective", "electra"], "Losses of `electra` are not forecast"),
        (["--methods.selection.strategy", "random", "--methods.selection.keep", "0.5"], "The loss with `selection`"),
        (["--data.mlm_probability", "0.3"], "Losses are forecast with AdamW and 15% of tokens masked only"),
    ],
)
def test_a_loss_of_which_nothing_is_known_is_not_forecast(flags, told):
    recipe = Recipe.load("tiny", flags)
    assert isinstance(traits_of(recipe, MEASURED), str)
    said = report(recipe, MEASURED, Clock.parse("105s"))
    assert told in said
    assert said.count("unknown") == 3


def test_a_report_has_half_and_twice_the_budget():
    said = report(Recipe.load("fast_tiny"), MEASURED, Clock.parse("8s"))
    rows = {line[:18].strip(): line[18:].split() for line in said.splitlines() if "  " in line}
    assert rows["tokens"] == ["-", "3,000", "11,000"]  # half of it is less than the start takes
    assert rows["passes over text"] == ["-", "0.00", "0.01"]
    assert "Memory at its peak: 800 MB of the process" in said
    assert "Of the time 5 s go into the start" in said
    assert "Only 19 steps were measured" in said
    assert "not measured" in said
    gpu = replace(with_text(MEASURED, 0.5), device="NVIDIA H100", energy_is_measured=True)
    said = report(Recipe.load("fast_tiny"), gpu, Clock.parse("2005s"))
    assert "1.00" in said
    assert "No run of this package has been measured on a GPU" in said
    assert "Energy is" not in said
