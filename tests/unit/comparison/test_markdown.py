"""The Markdown report says what the page says, in a form that GitHub draws."""

import math
import re

import pytest

from hf_effpt.comparison.markdown import markdown
from hf_effpt.comparison.plots import write_plots
from hf_effpt.comparison.report_tables import DASH, MINUS, amount, signed, small
from tests.unit.comparison.example_report import example_report, with_divergence, with_objectives, without_energy


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def test_verdicts_and_figures():
    report = example_report()
    text = markdown(report)
    for arm in report["arms"]:
        assert f"**{arm['verdict']['label']}** | {arm['verdict']['text']} |" in text
    mean = report["arms"][1]["difference"]["mean"]
    baseline, stacking, _ = row(text, "Paired difference")
    assert baseline == f"{DASH} (the baseline)"
    assert stacking.startswith(f"{MINUS}{-mean:.4f} (")
    assert stacking.endswith("n = 3; Holm p = 0.012)")
    assert row(text, "Budget to the baseline's loss")[1:] == [
        "1 min 38 s",
        f"{DASH} (the baseline's loss was not reached)",
    ]
    assert row(text, "Speed-up")[1] == "1.22x (1.11x to 1.37x)"
    assert row(text, "cola/mcc@default")[0] == f"{DASH} (one class predicted for all 1,043 examples)"
    assert row(text, "Energy a run (estimated from CPU time)") == ["0.0007 kWh"] * 3
    assert row(text, "Method overhead a run") == ["0.0 s", "0.3 s (0.3% of the time)", "0.3 s (0.3% of the time)"]
    assert "Only end points are compared" in text


def test_every_row_of_a_table_has_as_many_cells():
    report = example_report()
    report["arms"][1]["name"] = report["arms"][1]["verdict"]["text"] = "a|b `c` *d* <i>\nend"
    text = markdown(report)
    assert "<i>" not in text
    assert "a\\|b \\`c\\` \\*d\\* &lt;i&gt; end" in text
    tables = re.split(r"\n\n", text)
    for table in (part for part in tables if part.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_linked_if_and_only_if_they_are_drawn(tmp_path):
    for index, report in enumerate((example_report(), without_energy(), with_objectives())):
        linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown(report))
        paths = write_plots(report, tmp_path / str(index))
        assert linked == [path.name for path in paths]
        assert {*linked} == {path.name for path in (tmp_path / str(index)).iterdir()}


def test_void_and_divergence():
    report = with_divergence()
    report["void"] = "the baseline learnt nothing"
    report["arms"][0]["summary"]["scores"]["sst2/accuracy@default"]["mean"] = math.nan
    text = markdown(report)
    assert "> **This comparison says nothing.** the baseline learnt nothing" in text
    assert row(text, "Held-out loss, nats")[2] == f"{DASH} (2 finished, 1 diverged)"
    assert f"diverged (loss was NaN at step 310) | {DASH} (diverged) |" in text
    assert not re.search(r"\bnan\b", text.replace("loss was NaN", ""), re.IGNORECASE)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (amount(999), "999"),
        (amount(1000), "1.00 k"),
        (amount(999_999), "1.00 M"),
        (amount(999.7), "1.00 k"),
        (amount(4.92e6), "4.92 M"),
        (amount(45.84e12, "FLOP"), "45.8 TFLOP"),
        (amount(3e21), "3,000 E"),
        (amount(0), "0"),
        (small(0.00012345, "kWh"), "0.000123 kWh"),
        (small(1234.5, "g"), "1,234 g"),
        (small(999.9, "g"), "1,000 g"),
        (small(1.5e-5, "kWh"), f"1.5e{MINUS}05 kWh"),
        (signed(-0.05, 2, True), f"{MINUS}0.05"),
        (signed(0.05, 2, True), "+0.05"),
    ],
)
def test_figures_are_written_in_three_digits(written, expected):
    assert written == expected


def test_each_loss_stands_beside_its_own_floor_and_scores_beside_their_differences():
    text = markdown(with_objectives())
    assert row(text, "Objective") == ["mlm, per masked token"] * 2 + ["electra, per token"]
    assert row(text, "Floor of that loss")[::2] == ["6.400 (unigram floor)", "0.4254 (prior entropy)"]
    assert row(text, "Margin below the floor")[2].startswith("0.02")
    assert row(text, "Loss of its generator")[1:] == [
        f"{DASH} (it has none)", "5.766 (replaces 15.15% of the tokens judged)",
    ]  # fmt: skip
    assert row(text, "Paired difference to the baseline, nats")[2] == f"{DASH} (another objective)"
    assert row(text, "Speed-up")[2] == f"{DASH} (not given: another objective)"
    assert row(text, r"BLiMP, pll\_word\_l2r: paired difference")[2] == f"+0.0110 ({MINUS}0.0020 to +0.0240, n = 3)"
    assert row(text, "cola/mcc@default: paired difference")[2] == f"{DASH} (too few seeds with which both have it)"
    assert row(text, "sst2/accuracy@default: paired difference")[2] == f"{DASH} (none is given: see the verdict)"
    assert "Loss of its generator" not in markdown(example_report())
