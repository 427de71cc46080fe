import runpy
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from hf_effpt.core.errors import EffptError

EXAMPLE = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "frontier.py"))
frontier, plot, table = EXAMPLE["frontier"], EXAMPLE["plot"], EXAMPLE["table"]


def point(loss, parameters=100, **changes):
    measured = {"latency_1": parameters / 100, "latency_32": parameters / 10}
    return {"held_out_loss": loss, "parameters": parameters, "bytes": 4 * parameters, **measured, **changes}


def points():
    losses = {"compressed": [5.1, 5.0, 5.2], "random": [5.2, 5.1, 5.35], "small": [5.0, 5.0, 5.1]}
    found = {name: {seed: point(loss) for seed, loss in enumerate(each)} for name, each in losses.items()}
    found["large"] = {seed: point(4.9, 400) for seed in range(3)}
    found["large, int8"] = {seed: {"held_out_loss": 4.95, "parameters": 400, "bytes": 500} for seed in range(3)}
    return found


def test_means_and_paired_differences():
    found = frontier(points())
    assert found["models"]["compressed"]["held_out_loss"]["mean"] == pytest.approx(5.1)
    assert found["models"]["large"]["latency_32"]["mean"] == 40
    assert "latency_1" not in found["models"]["large, int8"]
    assert found["differences"]["random"]["mean"] == pytest.approx(-0.35 / 3)
    assert found["differences"]["small"]["mean"] == pytest.approx(0.2 / 3)
    assert found["differences"]["large"]["n"] == 3


@pytest.mark.parametrize("control", ["random", "small", "large"])
def test_without_its_controls_it_says_nothing(control):
    without = {name: each for name, each in points().items() if name != control}
    with pytest.raises(EffptError, match=f"The control `{control}` is missing"):
        frontier(without)
    fewer = points()
    del fewer[control][1]
    with pytest.raises(EffptError, match=rf"`{control}` has the seeds \[0, 2\], and `compressed` has \[0, 1, 2\]"):
        frontier(fewer)


def test_without_what_is_compared_or_its_latency_neither():
    with pytest.raises(EffptError, match="no model `compressed` to compare, but random, small"):
        frontier({name: each for name, each in points().items() if name != "compressed"})
    unmeasured = points()
    del unmeasured["small"][2]["latency_32"]
    with pytest.raises(EffptError, match="`small` with seed 2 has no latency_32; measure it"):
        frontier(unmeasured)


@pytest.mark.parametrize("control", ["random", "small"])
def test_controls_have_the_same_shape(control):
    other = points()
    other[control][0]["parameters"] = 101
    with pytest.raises(EffptError, match=f"`{control}` with seed 0 has 101 parameters, and `compressed` has 100"):
        frontier(other)


def test_table_and_picture(tmp_path, monkeypatch):
    found = frontier(points())
    lines = table(found).splitlines()
    assert lines[2] == "| compressed | 5.1000 (4.8516 to 5.3484) | 100 | 0.00 | 1.00 | 10.00 |"
    assert lines[6] == "| large, int8 | 4.9500 (4.9500 to 4.9500) | 400 | 0.00 |  |  |"
    assert "Compressed minus random: -0.1167 (-0.1884 to -0.0450)." in lines
    assert plot(found, tmp_path / "frontier.png").stat().st_size > 5000
    one = frontier({name: {0: each[0]} for name, each in points().items()})
    assert one["differences"] == {"random": None, "small": None, "large": None}
    assert "| compressed | 5.1000 | 100 |" in table(one)
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kwargs: drawn.append(path))
    assert [plot(one, tmp_path / "one.png")] == drawn
