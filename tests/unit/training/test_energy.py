import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError
from hf_effpt.training import energy
from hf_effpt.training.energy import CpuTimeEnergy, NvmlEnergy, RaplEnergy, energy_entry, energy_source
from hf_effpt.training.timekeeping import Timekeeper
from tests import tiny

CPU = torch.device("cpu")
LIMIT = 1_000_000_000


class Counter:
    """A source whose joules the test sets."""

    name, measured, now = "a counter", True, 0.0

    def joules(self) -> float:
        return self.now


@pytest.fixture
def counter(monkeypatch):
    source = Counter()
    monkeypatch.setattr("hf_effpt.training.timekeeping.energy_source", lambda _: source)
    return source


def domain(root, folder, name, value):
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{value}\n")
    (path / "max_energy_range_uj").write_text(f"{LIMIT}\n")


def test_packages_are_added_up_and_their_parts_are_not(tmp_path):
    domain(tmp_path, "intel-rapl:0", "package-0", 10_000_000)
    domain(tmp_path, "intel-rapl:1", "package-1", 700_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 1)
    domain(tmp_path, "intel-rapl:2", "psys", 5)
    source = RaplEnergy(tmp_path)
    assert source.joules() == 0.0
    domain(tmp_path, "intel-rapl:0", "package-0", 12_000_000)
    domain(tmp_path, "intel-rapl:1", "package-1", 703_500_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 900_000_000)
    domain(tmp_path, "intel-rapl:2", "psys", 900_000_000)
    assert source.joules() == 5.5
    assert source.joules() == 5.5


def test_a_counter_that_wraps_around_goes_on(tmp_path):
    domain(tmp_path, "intel-rapl:0", "package-0", LIMIT - 1_000_000)
    source = RaplEnergy(tmp_path)
    domain(tmp_path, "intel-rapl:0", "package-0", 2_000_000)
    assert source.joules() == 3.0
    domain(tmp_path, "intel-rapl:0", "package-0", 2_500_000)
    assert source.joules() == 3.5


def test_dies_that_show_one_counter_are_counted_once(tmp_path):
    for package, die, value in ((0, 0, 5_000_000), (0, 1, 5_000_100), (1, 0, 5_000_000), (1, 1, 90_000_000)):
        domain(tmp_path, f"intel-rapl:{2 * package + die}", f"package-{package}-die-{die}", value)
    source = RaplEnergy(tmp_path)
    for folder, value in enumerate((6_000_000, 6_000_100, 6_000_000, 91_000_000)):
        (tmp_path / f"intel-rapl:{folder}" / "energy_uj").write_text(str(value))
    assert source.joules() == 3.0


def test_of_the_processes_of_a_machine_one_counts_its_packages(tmp_path, monkeypatch):
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    source = RaplEnergy(tmp_path)
    domain(tmp_path, "intel-rapl:0", "package-0", 2_000_000)
    assert source.joules() == 0.0


def test_a_cpu_is_read_where_it_can_be_and_estimated_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(RaplEnergy.__init__, "__defaults__", (tmp_path,))
    assert energy_source(CPU).name == "estimated from CPU time"
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    assert energy_source(CPU).name == "RAPL, CPU packages only"
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # as good as unreadable, which root's files never are to root
    assert not energy_source(CPU).measured


def test_the_estimate_follows_the_time_of_the_cpu_alone(monkeypatch):
    source = CpuTimeEnergy()
    busy = iter([10.0, 12.5])
    monkeypatch.setattr(time, "process_time", lambda: next(busy))
    before = source.joules()
    assert source.joules() - before == 2.5 * energy.WATTS_A_CORE


def test_sleep_costs_no_estimated_energy():
    source = CpuTimeEnergy()
    before = source.joules()
    time.sleep(0.5)
    assert source.joules() - before < 0.1 * energy.WATTS_A_CORE


class NVMLError(Exception):
    pass


def nvml(**functions):
    return SimpleNamespace(NVMLError=NVMLError, nvmlInit=lambda: None, **functions)


def test_the_counter_of_a_gpu_is_read_by_its_uuid(monkeypatch):
    readings = {b"GPU-1234": iter([5_000, 7_500])}
    fake = nvml(
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(readings[handle]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    source = energy_source(torch.device("cuda"))
    assert (source.name, source.measured, source.joules()) == ("NVML, GPU only", True, 7.5)


def test_a_gpu_without_the_counter_is_no_error(monkeypatch):
    """NVML's errors are its own; they must not stop a run that has no use for joules."""

    def refuse():
        raise NVMLError("not supported")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, nvmlInit=refuse))
    with pytest.raises(RuntimeError, match="cannot be read: not supported"):
        NvmlEnergy(torch.device("cuda"))
    assert energy_source(torch.device("cuda")) is None


def test_steps_are_charged_and_pauses_are_not(counter):
    keeper = Timekeeper(Clock("joules", 100.0), CPU, 1)
    counter.now = 3.0
    keeper.step(tokens=1, flops=1.0)
    with keeper.paused():
        counter.now = 50.0
    counter.now = 51.5
    keeper.step(tokens=1, flops=1.0)
    assert keeper.clock.joules == 4.5
    assert keeper.clock.fraction == 0.045


@pytest.mark.parametrize(("unit", "sums"), [("steps", 1), ("joules", 4)])
def test_processes_add_their_energy_at_every_step_only_for_a_budget_in_it(counter, monkeypatch, unit, sums):
    calls = []

    def all_reduce(tensor):  # of two processes that do the same
        calls.append(tensor.clone())
        tensor *= 2

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    keeper = Timekeeper(Clock(unit, 100.0), CPU, 2)
    for _ in range(3):
        counter.now += 1.0
        keeper.step(tokens=1, flops=1.0)
    keeper.settle()
    assert keeper.clock.joules == 6.0
    assert len(calls) == sums


def test_what_an_earlier_part_did_not_count_is_not_made_up(counter):
    keeper = Timekeeper(Clock("steps", 10), CPU, 1)
    keeper.clock.restore(Clock("steps", 10, steps=5).as_dict())
    counter.now = 4.0
    keeper.step(tokens=1, flops=1.0)
    assert keeper.clock.joules is None
    assert energy_entry(keeper.clock, counter, 475.0, None) == {}


def test_a_kwh_is_3_6_megajoules_and_costs_its_intensity(counter):
    clock = Clock("steps", 1, joules=1.8e6)
    assert energy_entry(clock, counter, 475.0, None) == {
        "joules": 1.8e6,
        "kwh": 0.5,
        "source": "a counter",
        "measured": True,
        "carbon_intensity": 475.0,
        "co2e_grams": 237.5,
        "carbon_source": "world average (IEA 2019)",
    }
    entry = energy_entry(clock, counter, 20.0, None)
    assert (entry["co2e_grams"], entry["carbon_source"]) == (10.0, "set by carbon_intensity")


@pytest.mark.parametrize(("since_step", "grams"), [(0, 7.0), (5, 237.5)])
def test_codecarbon_has_the_last_word_unless_it_missed_the_beginning(counter, since_step, grams):
    emissions = {"kwh": 0.1, "co2e_grams": 7.0, "country": "FRA", "since_step": since_step}
    entry = energy_entry(Clock("steps", 1, joules=1.8e6), counter, 475.0, emissions)
    assert entry["co2e_grams"] == grams
    assert entry["carbon_source"] == ("codecarbon" if since_step == 0 else "world average (IEA 2019)")
    assert entry["codecarbon"] == emissions


@pytest.mark.parametrize(
    ("source", "says"), [(CpuTimeEnergy(), "only estimated from CPU time"), (None, "not known: its counter")]
)
def test_a_budget_in_joules_that_nothing_measures_is_refused_with_the_arguments(tmp_path, monkeypatch, source, says):
    monkeypatch.setattr("hf_effpt.training.arguments.energy_source", lambda _: source)
    with pytest.raises(EffptError, match=rf"5,000 joules .* {says}.* give steps"):
        tiny.arguments(tmp_path, budget="5kJ")


def test_a_budget_in_measured_joules_ends_the_run(tmp_path, monkeypatch):
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(RaplEnergy.__init__, "__defaults__", (tmp_path,))
    trainer = tiny.trainer(tmp_path / "out", budget="10J", save_strategy="steps", save_steps=3)
    charge = trainer.charge_step

    def charge_two_joules():
        counter = tmp_path / "intel-rapl:0" / "energy_uj"
        counter.write_text(str(int(counter.read_text()) + 2_000_000))
        charge()

    trainer.charge_step = charge_two_joules
    trainer.train()
    assert (trainer.state.global_step, trainer.clock.joules) == (5, 10.0)
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


def test_a_run_without_joules_is_not_resumed_on_a_budget_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_effpt.training.timekeeping.energy_source", lambda _: None)
    tiny.trainer(tmp_path, budget="2steps", save_strategy="steps", save_steps=2).train()
    monkeypatch.setattr("hf_effpt.training.arguments.energy_source", lambda _: Counter())
    with pytest.raises(EffptError, match="the run to be resumed has not counted"):
        tiny.trainer(tmp_path, budget="5kJ").train(resume_from_checkpoint=True)


def test_run_json_has_the_energy(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_effpt.training.timekeeping.energy_source", lambda _: CpuTimeEnergy())
    trainer = tiny.trainer(tmp_path, budget="2steps", carbon_intensity=20.0)
    trainer.train()
    trainer.save_model()
    entry = json.loads((tmp_path / "run.json").read_text())["energy"]
    assert entry["joules"] == trainer.clock.joules > 0
    assert entry["co2e_grams"] == pytest.approx(entry["joules"] / 3.6e6 * 20.0)
    assert "(estimated from CPU time)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("intensity", [-1.0, float("nan"), float("inf")])
def test_an_impossible_carbon_intensity_is_refused(tmp_path, intensity):
    with pytest.raises(EffptError, match=r"training\.carbon_intensity"):
        tiny.arguments(tmp_path, carbon_intensity=intensity)


@pytest.mark.gpu
def test_energy_of_a_gpu_rises():
    source = NvmlEnergy(torch.device("cuda"))
    before = source.joules()
    left = torch.randn(8192, 8192, device="cuda")
    for _ in range(200):
        left = left @ left.T / 100
    torch.cuda.synchronize()
    time.sleep(0.3)
    assert source.joules() > before
