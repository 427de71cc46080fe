"""Every objective and method on a CUDA device, in bfloat16: learns, resumes, exports, and never waits for it."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.core.registry import METHODS
from tests import tiny

from .settings import SETTINGS, VARIANTS

pytestmark = pytest.mark.gpu
ON_GPU = {"use_cpu": False, "bf16": True}
LEDGERS = {name: {name: settings} for name, settings in SETTINGS.items()} | VARIANTS


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_run(tmp_path: Path, **settings):
    """A run of eight steps, resumed from the fourth: finite, with the same losses, exported as stock."""
    straight = tiny.trainer(tmp_path / "run", **ON_GPU, **settings, saved=(4,))
    assert straight.args.device.type == "cuda" or straight.args.use_cpu
    straight.train()
    losses = losses_of(straight)
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))
    resumed = tiny.trainer(tmp_path / "run", **ON_GPU, **settings, save_total_limit=None)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    # Sums of a GPU are not always in the same order.
    assert losses_of(resumed)[-4:] == pytest.approx(losses[-4:], rel=2e-2)
    straight.save_model(str(tmp_path / "out"))
    encoder = AutoModel.from_pretrained(tmp_path / "out")
    assert all(bool(weight.isfinite().all()) for weight in encoder.state_dict().values() if weight.is_floating_point())


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(tmp_path, objective, backbone):
    check_run(tmp_path, objective=objective, backbone=backbone)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("ledger", LEDGERS.values(), ids=LEDGERS)
def test_methods(tmp_path, ledger, backbone):
    check_run(tmp_path, methods=ledger, backbone=backbone)


@pytest.mark.parametrize("objective", ["mlm", "electra"])
@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_compiled_layers(tmp_path, backbone, objective):
    check_run(tmp_path, objective=objective, backbone=backbone, compile_layers=True)
    torch.compiler.reset()


# Rows are selected by scores that the host reads, and which rows run decides the shape of the next layer.
@pytest.mark.parametrize("name", [None, *(name for name in METHODS if name not in ("selection", "layerskip"))])
def test_no_forward_or_backward_waits(tmp_path, monkeypatch, name):
    """CUDA itself raises an error where the host would wait."""
    trainer = tiny.trainer(tmp_path, name and {name: SETTINGS[name]}, **ON_GPU, logging_steps=100)
    step = trainer.training_step

    def strict(*args, **kwargs):
        torch.cuda.set_sync_debug_mode("error" if trainer.state.global_step >= 5 else "default")
        try:
            return step(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer, "training_step", strict)
    trainer.train()
    assert trainer.state.global_step == 8
