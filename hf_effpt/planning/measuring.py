"""Measures a recipe in a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.core.gpus import names_of_gpus
from hf_effpt.core.registry import environment_of

from .measurement import Measurement
from .pilot import NO_MEMORY


class TooLarge(EffptError):
    """Raised if the device has too little memory for a recipe."""


def measure(sections: Mapping[str, Any], seconds: float, device: str | None = None) -> Measurement:
    """Trains a recipe with these sections for about so many seconds, and returns what that showed.

    Args:
        sections (`Mapping[str, Any]`): sections of the recipe, as [`Recipe.resolved`] returns them.
        seconds (`float`): seconds of training; starting the process and the model come on top.
        device (`str`, *optional*): `cuda:1` for the second GPU that this process sees; by default the one that the
            Trainer chooses.

    Raises:
        TooLarge: if memory runs out.
        EffptError: if the recipe cannot be trained, with the reason.
    """
    environment = os.environ | environment_of(sections.get("methods") or {})
    if device is not None and device.startswith("cuda:"):
        (environment["CUDA_VISIBLE_DEVICES"],) = names_of_gpus([device.removeprefix("cuda:")])
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        write_json(request, {"recipe": sections, "seconds": seconds, "answer": str(answer)})
        done = subprocess.run(
            [sys.executable, "-m", "hf_effpt.planning.pilot", str(request)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return Measurement(**read_json(answer))
    if done.returncode in (NO_MEMORY, -signal.SIGKILL):
        raise TooLarge(
            "There is too little memory for this model and batch; make `training.per_device_train_batch_size` or "
            "`model.size` smaller."
        )
    lines = done.stderr.strip().splitlines()
    raise EffptError(f"The recipe cannot be measured: {lines[-1] if lines else f'exit code {done.returncode}'}")
