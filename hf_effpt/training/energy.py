"""Energy of a run in joules, measured by hardware counters where possible, else estimated.

On a GPU the CPU is left out, on a CPU the memory. Idle power is not subtracted: measuring it would delay every run.
"""

import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from hf_effpt.core.clock import JOULES_A_KWH, Clock
from hf_effpt.core.errors import EffptError

POWERCAP = Path("/sys/class/powercap")  # RAPL counters of Intel and AMD processors on Linux
WATTS_A_CORE = 4.0  # unknown CPU (codecarbon 3.3.2, core/cpu.py, DEFAULT_POWER_PER_CORE)
WORLD_AVERAGE = 475.0  # g CO2e per kWh (IEA, Global Energy & CO2 Status Report 2019), as in codecarbon


class EnergySource(Protocol):
    """Counter of joules that only rises; `measured` is `True` if hardware counts them."""

    name: str
    measured: bool

    def joules(self) -> float: ...


class NvmlEnergy:
    """Energy counter of the NVIDIA GPU `device` (Volta and later).

    The driver updates it every 20 to 100 ms, so short windows may read 0. Raises `ImportError` or `RuntimeError` if it
    cannot be read.
    """

    name, measured = "NVML, GPU only", True

    def __init__(self, device: torch.device) -> None:
        import pynvml

        if device.type != "cuda":
            raise RuntimeError("NVML knows NVIDIA GPUs only")
        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
            self.joules()
        except pynvml.NVMLError as error:  # no driver, permission or counter, for example on a MIG slice
            raise RuntimeError(f"the energy counter cannot be read: {error}") from error

    def joules(self) -> float:
        """Energy in joules since the driver was loaded."""
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3


class RaplEnergy:
    """Energy counters of all CPU packages (RAPL), for the whole machine without its memory.

    `root` holds `intel-rapl:N`, on AMD too. Raises `OSError` if there is no counter, or only root may read it.
    """

    name, measured = "RAPL, CPU packages only", True

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains: list[tuple[Path, int]] = []  # counter in µJ, and its wrap-around
        self._last: list[int] = []
        seen: dict[str, list[int]] = {}
        for folder in sorted(root.glob("intel-rapl:*")):
            label = (folder / "name").read_text().strip()  # package-0, core, dram, psys; package-0-die-1 on some
            if not label.startswith("package-"):
                continue
            value = int((folder / "energy_uj").read_text())
            dies = seen.setdefault(label.split("-die-")[0], [])
            # Dies may each show their package's counter; such readings are nearly equal.
            if not any(abs(value - other) < 1_000_000 for other in dies):
                self._domains.append((folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
                self._last.append(value)
            dies.append(value)
        if not self._domains:
            raise FileNotFoundError(f"no RAPL package counter in {root}")
        # All processes of a machine see the same counters; the sum over processes must count them once.
        self._counts = int(os.environ.get("LOCAL_RANK", "0")) == 0
        self._total = 0

    def joules(self) -> float:
        """Energy in joules since this object was made; 0 in all processes of a machine but the first."""
        for index, (counter, limit) in enumerate(self._domains):
            value = int(counter.read_text())
            gained = value - self._last[index]
            self._total += gained if gained >= 0 else gained + limit
            self._last[index] = value
        return self._total / 1e6 if self._counts else 0.0


class CpuTimeEnergy:
    """Estimate from the CPU seconds of this process, all threads, at a constant power per core.

    Excludes memory, idle cores, and other processes, such as data loader workers.
    """

    name, measured = "estimated from CPU time", False

    def joules(self) -> float:
        """Estimated energy in joules since the process began."""
        return WATTS_A_CORE * time.process_time()


def energy_source(device: torch.device) -> EnergySource | None:
    """Returns the best source for `device`; `None` for a GPU whose counter cannot be read."""
    if device.type == "cpu":
        try:
            return RaplEnergy()
        except (OSError, ValueError):
            return CpuTimeEnergy()
    try:
        return NvmlEnergy(device)
    except (ImportError, RuntimeError):
        return None


def check_source(budget: float, source: EnergySource | None) -> None:
    """Raises `EffptError` if `source` does not measure joules, the unit of `budget`."""
    if source is not None and source.measured:
        return
    found = "not known: its counter cannot be read" if source is None else f"only {source.name}"
    raise EffptError(
        f"The budget of {budget:,g} joules needs the energy of the device to be measured, and here it is "
        f"{found}. NVIDIA GPUs measure it, with the extra `energy` installed, and CPUs whose RAPL counters in "
        f"{POWERCAP} may be read; give steps, tokens, flops or time."
    )


def energy_entry(
    clock: Clock, source: EnergySource | None, intensity: float, emissions: dict[str, Any] | None
) -> dict[str, Any]:
    """Entry of `run.json` on the energy that `source` counted on `clock`, and its carbon; empty if nothing is known.

    The carbon is estimated at `intensity`, in g CO2e per kWh. `emissions`, codecarbon's totals, replace the estimate
    unless they cover only the last part of a resumed run.
    """
    entry: dict[str, Any] = {}
    if source is not None and clock.joules is not None:
        kwh = clock.joules / JOULES_A_KWH
        entry = {"joules": clock.joules, "kwh": kwh, "source": source.name, "measured": source.measured}
        by = "world average (IEA 2019)" if intensity == WORLD_AVERAGE else "set by carbon_intensity"
        entry |= {"carbon_intensity": intensity, "co2e_grams": kwh * intensity, "carbon_source": by}
    if emissions is not None:
        entry["codecarbon"] = emissions
        if emissions["since_step"] == 0:
            entry |= {"co2e_grams": emissions["co2e_grams"], "carbon_source": "codecarbon"}
    return entry
