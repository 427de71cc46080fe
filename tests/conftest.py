"""Fixtures and checks of all tests. Slow imports are in functions: the process that hands out tests needs none."""

import functools
import gc
import logging
import os

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
CASES = 200  # random cases of tests/fuzz in an ordinary run; `--fuzz 10000` before a release


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=CASES, help="random cases that the tests of tests/fuzz try, in all")


@pytest.fixture(autouse=True)
def _one_thread_and_no_leftovers(monkeypatch, tmp_path):
    """Equal results on every machine, and no test sees another's cache."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setenv("HF_EFFPT_CACHE", str(tmp_path / "cache"))


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
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Spares every test what would take longer than most of them.

    What imports have made, half a million objects, is kept out of garbage collections, and no run of a Trainer begins
    with one, which would free a device's memory. Seeds for devices that are not there are not noted with the stack at
    hand. Records of torch's loggers come to the root's handlers, so that pytest does not add its own to each of fifty
    loggers. The template of model cards is compiled once.
    """
    import jinja2
    import torch
    from accelerate.utils import memory

    gc.collect()
    gc.freeze()
    memory.clear_device_cache = lambda *args, **kwargs: None
    if not torch.accelerator.is_available():
        for kind in (torch.cuda, torch.xpu, torch.mtia):
            kind.manual_seed_all = lambda seed: None
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch."):
            logger.propagate = True
    jinja2.Environment.compile = functools.lru_cache(jinja2.Environment.compile)
