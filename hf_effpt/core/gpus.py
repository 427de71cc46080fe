"""GPUs by their number among those that this process sees."""

import os
from collections.abc import Sequence

import torch

from .errors import EffptError


def names_of_gpus(numbers: Sequence[str]) -> list[str]:
    """Names that `CUDA_VISIBLE_DEVICES` takes for the GPUs that this process counts by these numbers, from 0.

    Where that variable is set already, it is a list of which they are the places. Raises `EffptError` if there is no
    such GPU.
    """
    there = torch.cuda.device_count()
    if wrong := [number for number in numbers if not (number.isascii() and number.isdigit() and int(number) < there)]:
        raise EffptError(f"There is no GPU {', '.join(wrong)}: {there} can be seen here, numbered from 0.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return [str(int(number)) for number in numbers]
    return [visible.split(",")[int(number)].strip() for number in numbers]
