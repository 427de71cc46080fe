"""The pictures show every arm, and only what is known."""

import importlib.util
import sys

import pytest

from hf_effpt.comparison import chart_series, plots
from hf_effpt.comparison.plots import require_plotting, write_plots
from hf_effpt.core.errors import EffptError
from tests.unit.comparison.example_report import (
    FLOOR,
    example_report,
    with_divergence,
    with_objectives,
    without_energy,
)

TIME = chart_series.AXES[0]


def test_pictures_are_written_and_pyplot_is_left_alone(tmp_path):
    before, report = sys.modules.get("matplotlib.pyplot"), with_divergence()
    report["arms"][1]["name"] = (
        r"_a $\nonsense$ & <b>"  # a broken formula and a hidden legend entry, if it were not escaped
    )
    paths = write_plots(report, tmp_path / "new")
    assert [path.name for path in paths] == [
        "loss_by_time.png", "loss_by_tokens.png", "loss_by_flops.png", "loss_by_kwh.png", "differences.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sys.modules.get("matplotlib.pyplot") is before


@pytest.mark.usefixtures("undrawn")
def test_no_picture_of_what_is_not_known(tmp_path):
    names = {path.name for path in write_plots(without_energy(), tmp_path)}
    assert "loss_by_kwh.png" not in names
    assert "loss_by_reference_time.png" not in names
    assert "loss_by_time.png" in names


def test_a_picture_has_every_arm_and_the_floor():
    report = example_report()
    report["arms"][1]["name"] = "_stacking"
    figure = plots._losses(report, TIME, *chart_series.groups(report))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "baseline", " _stacking", "layerdrop", "unigram floor", "end of a shorter, fully decayed run",
    ]  # fmt: skip
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Time (s)"
    final = {run["held_out_loss"] for arm in report["arms"] for run in arm["runs"]}
    drawn = {float(line.get_ydata()[0]) for line in axes.lines if len(line.get_ydata()) == 1}
    assert drawn == final
    assert any(list(line.get_ydata()) == [FLOOR, FLOOR] for line in axes.lines)


def test_differences_are_drawn_seed_by_seed():
    report = with_divergence()
    (axes,) = plots._differences(report).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stacking", "layerdrop"]
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert [len(line) for line in dots] == [3, 2]
    assert [text.get_text() for text in axes.texts] == ["no difference is given: see the verdict"]


def test_a_missing_library_names_the_extra(monkeypatch):
    require_plotting()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(EffptError, match=r"matplotlib, which.*pip install 'hf_effpt\[plot\]'"):
        require_plotting()


@pytest.mark.usefixtures("undrawn")
def test_no_picture_has_losses_of_two_objectives(tmp_path):
    report = with_objectives()
    names = [path.name for path in write_plots(report, tmp_path)]
    assert names[:5] == [*(axis.picture for axis in chart_series.AXES[:4]), "loss_by_time_electra_per_token.png"]
    masked, electra = (plots._losses(report, TIME, group) for group in chart_series.groups(report))
    labels = [[text.get_text() for text in figure.legends[0].get_texts()][:-1] for figure in (masked, electra)]
    assert labels == [["baseline", "stacking", "unigram floor"], ["electra", "prior entropy"]]
    assert max(float(max(line.get_ydata())) for line in electra.axes[0].lines if len(line.get_ydata())) < 1
    (axes,) = plots._differences(report).axes
    assert [text.get_text() for text in axes.texts] == ["another objective: its loss is not that of the baseline"]
