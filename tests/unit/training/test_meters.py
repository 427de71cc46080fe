import time

import pytest
import torch

from hf_effpt.training.meters import PARTS, StepMeter, peak_flops

CPU = torch.device("cpu")


def test_shares_add_up(monkeypatch):
    meter = StepMeter(CPU)
    monkeypatch.setattr("hf_effpt.training.meters.peak_flops", lambda *_: 100.0)
    ticks = iter([0.0, 1.0, 1.0, 2.0, 4.0, 7.0, 7.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    with meter.measure("data"):
        pass
    with meter.measure("training_step"), meter.measure("forward"):
        pass
    with meter.measure("optimizer"):
        pass
    meter.add(tokens=80, flops=400.0, seconds=8.0)
    assert meter.summary(torch.float32) == {
        "tokens_per_second": 10.0,
        "mfu": 0.5,
        "time_data": 1 / 8,
        "time_forward": 2 / 8,
        "time_backward": 4 / 8,
        "time_optimizer": 1 / 8,
    }


def test_nothing_measured_says_nothing():
    assert StepMeter(CPU).summary(torch.float32) == {}


def test_peak_is_measured_once():
    peak_flops.cache_clear()
    generator = torch.get_rng_state()
    first = peak_flops(CPU, torch.float32)
    # or a resumed run, which measures again, would drop other units
    assert torch.equal(generator, torch.get_rng_state())
    assert first > 1e8
    assert peak_flops(CPU, torch.float32) == first


@pytest.mark.gpu
def test_events_measure_on_the_device():
    device = torch.device("cuda")
    meter = StepMeter(device)
    left = torch.randn(4096, 4096, device=device)
    for part in (*PARTS[1:2], "training_step"):
        with meter.measure(part):
            left @ left
    meter.add(tokens=1, flops=1.0, seconds=1.0)
    assert meter.summary(torch.bfloat16)["time_forward"] > 0
