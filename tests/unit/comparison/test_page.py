"""The page holds everything it shows, shows names as they are, and never an unknown as a number."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from hf_effpt.comparison.chart_series import chart_data
from hf_effpt.comparison.page import write_page
from hf_effpt.comparison.report_tables import Cell, results_table
from tests.unit.comparison.example_report import (
    BUDGET,
    example_report,
    with_divergence,
    with_many_arms,
    with_objectives,
    without_energy,
)

HOSTILE = '<b>x</b> & "y"</script>'


class Page(HTMLParser):
    """The page's text by element, and all that it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.path: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.fetched += [
            value for name, value in attributes if name in ("src", "href", "srcset") and value != "data:,"
        ]
        if tag not in ("meta", "link", "br"):
            self.path.append(tag)

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, text):
        if text.strip():
            self.texts.append((self.path[-1] if self.path else "", text.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    @property
    def words(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))


@pytest.fixture
def page(tmp_path):
    def write(report) -> Page:
        path = tmp_path / "new" / "report.html"
        write_page(report, path)
        return Page(path.read_text(encoding="utf-8"))

    return write


def data_of(page: Page) -> dict:
    return json.loads(next(text for text in page.of("script") if text.startswith("{")))


def test_the_page_fetches_nothing_and_holds_its_plotting_library(page, tmp_path):
    written = page(example_report())
    assert written.fetched == []
    assert any(text.startswith("/**\n* plotly.js") for text in written.of("script"))
    assert (tmp_path / "new" / "report.html").stat().st_size < 1.5e6
    assert not [text for text in written.of("style") if "@import" in text or "url(" in text]


def test_verdicts_come_first_in_words(page):
    report = example_report()
    words = page(report).words
    for arm in report["arms"]:
        assert arm["verdict"]["text"] in words
        assert words.index(arm["verdict"]["text"]) < words.index("Held-out loss")
    assert "better" in words
    assert "worse" in words
    assert "a budget of 2 min, counted as training time; seeds 0, 1, 2" in words
    assert "Only end points are compared" in words


def test_void_banner(page):
    report = example_report()
    assert "says nothing" not in page(report).words
    report["void"] = "the baseline learnt nothing beyond token frequencies"
    assert "This comparison says nothing. the baseline learnt nothing" in page(report).words


def test_hostile_text_is_shown_as_it_is(page):
    report = example_report()
    report["arms"][1]["name"] = HOSTILE
    report["title"] = report["notes"][0] = report["arms"][1]["verdict"]["text"] = report["command"] = (
        "{{data}} " + HOSTILE
    )
    report["arms"][1]["runs"][0]["note"] = HOSTILE
    written = page(report)
    assert "b" not in written.path
    assert written.of("b") == []
    assert HOSTILE in written.of("h3")
    assert HOSTILE in written.of("h4")
    assert written.of("h1") == ["{{data}} " + HOSTILE]
    assert written.of("th").count(HOSTILE) == 1 + len(report["arms"][1]["runs"])
    assert data_of(written)["arms"][1]["name"] == HOSTILE


def test_many_arms_are_rows_with_a_style_each(page):
    report = with_many_arms(25)
    arms = data_of(written := page(report))["arms"]
    assert len({(arm["colour"], arm["dash"]) for arm in arms}) == 25
    assert written.of("th")[:2] == ["Arm", "Objective"]
    table = results_table(report)
    assert [row[0].text for row in table.rows] == [arm["name"] for arm in report["arms"]]
    few = results_table(example_report())
    assert few.header == ["Measure", "baseline", "stacking", "layerdrop"]
    assert [row[0] for row in few.rows] == [Cell(name) for name in table.header[1:]]


def test_no_nan_reaches_the_page(page):
    report = with_divergence()
    report["arms"][0]["summary"]["scores"]["sst2/accuracy@default"]["mean"] = math.inf
    written = page(report)
    assert not re.search(
        r"\b(nan|inf|infinity)\b", written.words.replace("loss was NaN at step 310", ""), re.IGNORECASE
    )
    arm = data_of(written)["arms"][2]
    diverged = next(curve for curve in arm["curves"] if curve["seed"] == 1)
    assert diverged["state"] == "diverged"
    assert len(diverged["loss"]) == len(diverged["x"]["seconds"]) == 5
    assert arm["mean"]["n"] == 2
    assert [pair["seed"] for pair in arm["pairs"]] == [0, 2]
    assert arm["by_budget"]["n"] == [3, 3, 2]
    assert "loss was NaN at step 310" in written.of("small")
    assert "2 finished, 1 diverged" in written.of("small")


def test_estimated_energy_says_so(page):
    written = page(example_report())
    assert "Energy a run (estimated from CPU time)" in written.of("th")
    assert "CO2e a run (estimated, at 475 g/kWh)" in written.of("th")
    assert {"Energy, estimated", "CO2e, estimated"} < set(written.of("th"))
    axis = next(axis for axis in data_of(written)["axes"] if axis["key"] == "kwh")
    assert axis["title"] == "Energy (kWh, estimated)"
    report = example_report()
    report["energy"]["source"] = "RAPL"
    assert "estimated" not in page(report).words
    assert "Energy a run (RAPL)" in page(report).of("th")


def test_unknown_energy_is_a_dash_with_its_reason(page):
    written = page(without_energy())
    assert written.of("small").count("nothing measures energy here") == 6
    assert "kWh" not in written.words
    axes = {axis["key"]: axis["missing"] for axis in data_of(written)["axes"]}
    assert axes["kwh"] == "The energy of these runs is not known."
    assert axes["seconds"] is None
    assert "no reference" in axes["reference_seconds"]


def test_a_mean_line_is_the_mean_of_its_seeds():
    report = example_report()
    arm = chart_data(report)["arms"][0]
    last = [curve["loss"][-1] for curve in arm["curves"]]
    assert arm["mean"]["loss"][-1] == pytest.approx(sum(last) / 3)
    assert arm["mean"]["x"]["seconds"][-1] == BUDGET
    summary = report["arms"][0]["summary"]["final_loss"]
    assert arm["mean"]["low"][-1] == pytest.approx(summary["low"], abs=1e-4)
    assert arm["mean"]["high"][-1] == pytest.approx(summary["high"], abs=1e-4)


def test_seeds_are_averaged_at_equal_shares_where_their_points_differ():
    report = example_report()
    arm = report["arms"][0]
    arm["runs"] = [run for run in arm["runs"] if run["fraction"] == 1.0][:2]
    for run, shares, losses in zip(arm["runs"], ((0.0, 1.0), (0.5, 1.0)), ((8.0, 6.0), (5.0, 4.0)), strict=True):
        run["curve"] = [
            dict.fromkeys(("seconds", "tokens"), 10 * share) | {"clock": share, "loss": loss}
            for share, loss in zip(shares, losses, strict=True)
        ]
    mean = chart_data(report)["arms"][0]["mean"]
    assert mean["loss"] == [6.0, 5.0]
    assert mean["x"]["tokens"] == [5.0, 10.0]
    assert mean["x"]["flops"] is None


def test_one_seed_has_no_interval(page):
    report = example_report()
    for arm in report["arms"]:
        arm["runs"] = arm["runs"][:3]
        arm["difference"] = None
        arm["summary"]["final_loss"] |= {"low": None, "high": None, "n": 1}
    report["seeds"] = [0]
    written = page(report)
    assert data_of(written)["arms"][0]["mean"]["low"] is None
    assert "no interval from 1 run" in written.of("small")
    assert "seed 0;" in written.words


def test_a_report_without_a_finished_run(page):
    report = example_report()
    for arm in report["arms"]:
        arm["difference"] = arm["summary"]["final_loss"] = None
        for run in arm["runs"]:
            run |= {"state": "failed", "held_out_loss": None, "final_learning_rate": None, "curve": [], "scores": {}}
            run["clock"] = dict.fromkeys(run["clock"])
    written = page(report)
    assert written.of("small").count("3 failed") == 3
    assert all(axis["missing"] for axis in data_of(written)["axes"])


def test_shorter_runs_are_points_and_the_crossing_is_marked():
    report = example_report()
    report["arms"][0]["summary"]["budget_to_baseline_loss"] = {"value": BUDGET}  # its own loss, which is no crossing
    baseline, stacking, layerdrop = chart_data(report)["arms"]
    assert baseline["by_budget"]["x"] == [60.0, 84.0, 120.0]
    assert len(stacking["ends"]) == 9
    assert len(stacking["curves"]) == 3
    assert stacking["crossing"] == {
        "x": 98.0, "loss": pytest.approx(baseline["by_budget"]["loss"][-1]), "text": "1 min 38 s",
    }  # fmt: skip
    assert layerdrop["crossing"] is baseline["crossing"] is None
    assert baseline["pairs"] == []
    gaps = [pair["value"] for pair in stacking["pairs"]]
    assert sum(gaps) / 3 == pytest.approx(report["arms"][1]["difference"]["mean"])


def test_losses_of_different_objectives_are_in_different_charts(page):
    written = page(with_objectives())
    data = data_of(written)
    assert [(group["loss_of"], group["floor_name"], group["floors"]) for group in data["groups"]] == [
        ("mlm, per masked token", "unigram floor", [6.4]),
        ("electra, per token", "prior entropy", [0.4254]),
    ]
    assert [arm["group"] for arm in data["arms"]] == [0, 0, 1]
    electra = data["arms"][2]
    assert electra["pairs"] == []
    assert electra["no_difference"].startswith("another objective")
    assert electra["by_budget"]["loss"][-1] < 1
    assert "never in one chart" in written.words
    assert "replaces 15.15% of the tokens judged" in written.words
    assert "never in one chart" not in page(example_report()).words


def test_differences_of_scores_are_on_the_page(page):
    report = with_objectives()
    report["primary"] = "blimp/pll_word_l2r"
    written = page(report)
    assert "Verdicts are given on BLiMP, pll_word_l2r." in written.words
    assert "BLiMP, pll_word_l2r: paired difference to the baseline" in written.of("th")
    assert written.of("td").count("+0.0110") == 2
