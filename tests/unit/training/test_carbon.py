"""The real codecarbon, with sockets disabled."""

import csv
import json
import logging
import sys

import pytest
from transformers import TrainerCallback
from transformers.integrations import CodeCarbonCallback

from hf_effpt.core.errors import EffptError
from hf_effpt.training import carbon
from tests import tiny

pytest.importorskip("codecarbon", reason="needs the extra `energy`")


@pytest.fixture(autouse=True)
def configuration(tmp_path, monkeypatch):
    """No configuration but that of the test, in a folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CODECARBON_COUNTRY_ISO_CODE", raising=False)


def run(out, **changes):
    trainer = tiny.trainer(out, **{"budget": "2steps", "report_to": "codecarbon", **changes})
    trainer.train()
    trainer.save_model()
    return trainer, json.loads((out / "run.json").read_text())["energy"]


def test_a_run_without_network_has_the_carbon_of_its_country(tmp_path, monkeypatch, caplog):
    logging.getLogger("codecarbon").setLevel(logging.INFO)  # as a new process has it
    monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", "fra")
    trainer, energy = run(tmp_path / "out")
    assert trainer.pop_callback(CodeCarbonCallback) is None
    assert trainer.args.report_to == ["codecarbon"]
    found = energy["codecarbon"]
    assert (found["country"], found["since_step"]) == ("FRA", 0)
    assert 0 < found["co2e_grams"] / found["kwh"] < 150  # France, not the world
    assert (energy["co2e_grams"], energy["carbon_source"]) == (found["co2e_grams"], "codecarbon")
    with (tmp_path / "out" / "emissions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["emissions"]) == pytest.approx(found["co2e_grams"] / 1e3)
    assert "geographical_location: FRA" in (tmp_path / "out" / "README.md").read_text()
    assert not [entry.message for entry in caplog.records if entry.name == "codecarbon"]


def test_the_country_may_be_in_the_configuration_file(tmp_path):
    (tmp_path / ".codecarbon.config").write_text("[codecarbon]\ncountry_iso_code = DEU\n")
    assert carbon.country() == "DEU"


@pytest.mark.parametrize(("code", "says"), [(None, "no country is given"), ("QQQ", "'QQQ' is no country it knows")])
def test_without_a_country_the_arguments_are_refused(tmp_path, monkeypatch, code, says):
    if code:
        monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", code)
    with pytest.raises(EffptError, match=f"{says}.*CODECARBON_COUNTRY_ISO_CODE"):
        tiny.arguments(tmp_path, report_to="codecarbon")


def test_without_the_package_the_arguments_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    monkeypatch.setitem(sys.modules, "codecarbon.core.config", None)
    with pytest.raises(EffptError, match=r"hf_effpt\[energy\]"):
        tiny.arguments(tmp_path, report_to="codecarbon")


def test_a_run_that_fails_stops_the_tracker_and_keeps_its_figures(tmp_path, monkeypatch):
    class Fail(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyError("a fault")

    monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", "FRA")
    trainer = tiny.trainer(tmp_path / "out", report_to="codecarbon")
    trainer.add_callback(Fail())
    with pytest.raises(KeyError, match="a fault"):
        trainer.train()
    assert trainer.cost.timekeeper.emissions["kwh"] > 0
    assert (tmp_path / "out" / "emissions.csv").is_file()


def test_a_resumed_run_says_from_where_it_was_watched(tmp_path, monkeypatch):
    monkeypatch.setenv("CODECARBON_COUNTRY_ISO_CODE", "FRA")
    first = tiny.trainer(tmp_path / "out", budget="4steps", save_strategy="steps", save_steps=2)
    first.add_callback(tiny.StopAfter(2))
    first.train()
    trainer = tiny.trainer(tmp_path / "out", budget="4steps", report_to="codecarbon")
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    energy = json.loads((tmp_path / "out" / "run.json").read_text())["energy"]
    assert energy["codecarbon"]["since_step"] == 2
    assert energy["carbon_source"] == "world average (IEA 2019)"
    assert energy["joules"] > first.clock.joules


def test_without_it_nothing_is_tracked(tmp_path):
    _, energy = run(tmp_path / "out", report_to="none")
    assert "codecarbon" not in energy
    assert not (tmp_path / "out" / "emissions.csv").exists()
