"""`effpt methods`: the list and the details come from the classes themselves."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from hf_effpt.cli.main import main
from hf_effpt.core.method import Method, Paper
from hf_effpt.core.registry import METHODS


@dataclass
class Nap(Method):
    """Rests now and then (Doe, 2001).

    Args:
        often (`float`, *optional*, defaults to 0.5): how often.
    """

    name: ClassVar[str] = "nap"
    summary: ClassVar[str] = "Rests now and then."
    paper: ClassVar[Paper] = Paper(title="On naps", authors="Jane Doe, John Roe", year=2001, bibtex="@misc{nap}")
    conflicts: ClassVar[frozenset[str]] = frozenset({"coffee"})

    often: float = 0.5
    where: str | None = None


@pytest.fixture
def nap(monkeypatch):
    monkeypatch.setitem(METHODS, "nap", Nap)


@pytest.mark.usefixtures("nap")
def test_list_shows_every_method_with_paper_and_defaults(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("layerdrop: ") < shown.index("nap: Rests now and then.") < shown.index("stacking: ")
    assert "{often: 0.5, where: null}" in shown
    assert "On naps (Jane Doe et al., 2001)" in shown
    assert "https://arxiv.org/abs/1909.11556" in shown
    assert "{head_keep: 0.666667, " in shown
    assert "rescale: false, " in shown


@pytest.mark.usefixtures("nap")
def test_one_method_is_explained(capsys):
    assert main(["methods", "nap"]) == 0
    shown = capsys.readouterr().out
    assert "often (`float`, *optional*, defaults to 0.5): how often." in shown
    assert "Cannot run together with coffee." in shown
    assert "--methods.nap '{often: 0.5, where: null}'" in shown


def test_unknown_method_names_the_nearest(capsys):
    assert main(["methods", "layerdorp"]) == 2
    assert "did you mean `layerdrop`?" in capsys.readouterr().err
