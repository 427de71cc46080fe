"""Fixtures and checks of all tests. Slow imports are in functions: the process that hands out tests needs none."""

import gc
import os

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _one_thread_and_no_leftovers(monkeypatch, tmp_path):
    """Equal results on every machine, and no test sees another's cache."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setenv("HF_EFFPT_CACHE", str(tmp_path / "cache"))
    # Every run of a Trainer begins with a garbage collection, which frees a device's memory.
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda *args, **kwargs: None)


@pytest.fixture
def counted(monkeypatch):
    """Has all trainers of the test count the products of their steps."""
    from hf_effpt.training.flops import FlopCounter
    from tests import tiny

    monkeypatch.setattr(tiny, "default_counter", FlopCounter)


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Keeps what imports have made, half a million objects, out of garbage collections."""
    gc.collect()
    gc.freeze()
