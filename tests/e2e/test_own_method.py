"""A method outside the package: the one that CONTRIBUTING.md shows, and what makes it known."""

import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from hf_effpt.cli.main import main
from hf_effpt.core import registry
from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS, build_methods, import_methods
from hf_effpt.hub.card import add_scores
from hf_effpt.hub.export import export
from hf_effpt.hub.folders import files_of
from hf_effpt.hub.push import push
from tests import tiny
from tests.processes import run

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.search(r"```python\n(# resting.py\n.*?)```", TEXT, re.DOTALL)[1]


@pytest.fixture
def _module(tmp_path, monkeypatch):
    """The module in the working directory; nothing of it is left afterwards."""
    (tmp_path / "resting.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(registry.IMPORTS, "")
    yield
    METHODS.pop("resting", None)
    sys.modules.pop("resting", None)


def printed(code, folder, **settings):
    """Runs some code in a new process in a folder, and returns its output."""
    return run(code, folder=folder, **settings).said


def test_it_is_short():
    assert len(CODE.splitlines()) < 40


@pytest.mark.usefixtures("_module")
def test_it_does_what_it_says_resumes_and_exports(tmp_path):
    import_methods(["resting"])
    ledger = {"resting": {"until": 0.5}}
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    straight = tiny.trainer(tmp_path / "run", ledger, **settings)
    before = straight.model.bert.embeddings.position_embeddings.weight.detach().clone()
    seen = []
    straight.model.bert.register_forward_pre_hook(
        lambda model, args: seen.append(model.embeddings.position_embeddings.weight.requires_grad)
    )
    straight.train()
    assert seen == [False] * 4 + [True] * 4
    assert not torch.equal(before, straight.model.bert.embeddings.position_embeddings.weight)
    for at in (2, 6):
        resumed = tiny.trainer(tmp_path / "run", ledger, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{at}"))
        for name, weight in tiny.weights(straight.model).items():
            assert torch.equal(weight, resumed.model.get_parameter(name)), name
    stopped = tiny.trainer(tmp_path / "stopped", ledger)
    stopped.add_callback(tiny.StopAfter(2))
    stopped.train()
    assert all(parameter.requires_grad for parameter in stopped.model.export().parameters())


@pytest.mark.usefixtures("_module")
def test_commands_know_it_by_import(capsys):
    assert main(["methods", "resting"]) == 2
    said = capsys.readouterr().err
    assert "There is no method `resting`" in said
    assert "--import MODULE" in said
    assert main(["methods", "resting", "--import", "resting"]) == 0
    assert "fraction of the clock, in [0, 1], from which they learn" in capsys.readouterr().out
    with pytest.raises(EffptError, match=r"`resting.until` must be in \[0, 1\], not 2"):
        build_methods({"resting": {"until": 2}})


@pytest.mark.usefixtures("_module")
def test_processes_that_are_started_know_it(tmp_path):
    """Workers of a comparison are such processes; they find the module by the environment."""
    import_methods(["resting"])
    code = "from hf_effpt.core.registry import METHODS; print(METHODS['resting'].name)"
    assert printed(code, tmp_path) == "resting\n"


@pytest.mark.usefixtures("_module")
def test_a_module_that_is_not_there_is_named():
    with pytest.raises(EffptError, match=r"The module `restin` cannot be imported .*my_methods"):
        import_methods(["restin"])


def test_a_broken_package_is_warned_of_and_takes_nothing_else_along(monkeypatch, caplog):
    class Broken:
        name, value = "broken", "broken.methods"

        def load(self):
            raise RuntimeError("no such thing")

    found = registry.entry_points(group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [*found, Broken()])
    assert list(registry.Registry()) == []  # the package's own were registered in METHODS before
    assert "the methods of `broken.methods` cannot be imported: no such thing" in caplog.text


@pytest.mark.parametrize("first", ["METHODS", "LayerDrop"])
@pytest.mark.usefixtures("_module")
def test_it_acts_after_the_packages_own_methods_whatever_is_imported_first(tmp_path, first):
    code = f"import resting; from hf_effpt import {first}, METHODS; print(list(METHODS)[0], list(METHODS)[-1])"
    assert printed(code, tmp_path) == "layerdrop resting\n"


@pytest.mark.usefixtures("_module")
def test_a_comparison_started_by_a_script_tells_its_processes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("resting")  # as a script does, without `--import`
    environment = registry.environment_of({"resting", "layerdrop"})
    assert registry.environment_of({"layerdrop"}) == {}
    code = "from hf_effpt.core.registry import METHODS; print(METHODS['resting'].name)"
    (tmp_path / "elsewhere").mkdir()
    assert printed(code, tmp_path / "elsewhere", environment=os.environ | environment) == "resting\n"
    METHODS["resting"].__module__ = "__main__"
    with pytest.raises(EffptError, match=r"defined in the script itself.*my_methods"):
        registry.environment_of({"resting"})


@pytest.mark.usefixtures("_module")
def test_its_files_travel_with_the_export_and_its_card_is_not_taken_for_an_edited_one(tmp_path, monkeypatch, caplog):
    import_methods(["resting"])
    monkeypatch.setattr(METHODS["resting"], "save_artifacts", lambda *args: (args[2] / "rests.txt").write_text("one"))
    trainer = tiny.trainer(tmp_path / "run", {"resting": {"until": 0.5}})
    trainer.train()
    trainer.save_model()
    assert "rests.txt" in files_of(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "copy")
    assert (tmp_path / "copy" / "rests.txt").read_text() == "one"
    (tmp_path / "run" / "other.txt").touch()
    assert "other.txt" not in files_of(tmp_path / "run")

    score = {"cola/mcc@default": {"value": 0.1, "n": 1, "spread": None, "notes": []}}
    assert add_scores(tmp_path / "run", score)
    METHODS.pop("resting")
    assert not add_scores(tmp_path / "run", score)
    assert "There is no method `resting`" in caplog.text
    with pytest.raises(EffptError, match=r"import the module"):
        push(tmp_path / "run", "me/model", token="a")


def test_a_module_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text("def (")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv(registry.IMPORTS, "")
    with pytest.raises(EffptError, match=r"The module `wrong` cannot be imported \(SyntaxError"):
        import_methods(["wrong"])
