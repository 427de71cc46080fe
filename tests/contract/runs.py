"""Runs of eight steps that several tests compare with, and what a resumed run or an export must share with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertModel

from hf_effpt import export
from tests import tiny
from tests.processes import run

RESUMED_AT = (2, 4, 7)
# Loads, as users do, the folders that are named, and compares with outputs of the training model in `probe.pt`.
LOAD = """
import sys, torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

for folder in sys.argv[1:]:
    probe = torch.load(folder + "/probe.pt")
    for place, logits in probe["logits"].items():
        auto = AutoModelForPreTraining if probe["discriminates"] and not place else AutoModelForMaskedLM
        model, report = auto.from_pretrained(folder + place, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        assert type(model).__module__.startswith("transformers."), type(model)
        assert torch.allclose(model(probe["ids"]).logits, logits, atol=1e-6), folder + place
    for place in {"", *probe["logits"]}:
        encoder, report = AutoModel.from_pretrained(folder + place, output_loading_info=True)
        missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}  # no objective trains one
        assert not missing and not report["mismatched_keys"], report
        if not place:
            assert torch.allclose(encoder(probe["ids"]).last_hidden_state, probe["hidden"], atol=1e-6), folder
        assert AutoTokenizer.from_pretrained(folder + place)("w1 w2").input_ids == [2, 6, 7, 3]
assert not any(name.startswith("hf_effpt") for name in sys.modules)
"""


class Runs:
    """Finished straight runs with checkpoints of the steps `at`; each is trained when a test first asks for it.

    Where the class of the tests `accumulates`, a step of a method alone has two micro-batches; elsewhere all its rows
    are in one.
    """

    def __init__(self, folder: Path, of: type) -> None:
        self.folder, self.backbone, self.at = folder, getattr(of, "backbone", "bert"), getattr(of, "at", RESUMED_AT)
        self.accumulates = getattr(of, "accumulates", False)
        self._done: dict[str, tiny.EffptTrainer] = {}

    def __call__(self, objective: str, ledger: dict, dropout: float = 0.1) -> tiny.EffptTrainer:
        key = f"{objective} {ledger} {dropout}"
        if key not in self._done:
            folder = self.folder / str(len(self._done))
            self._done[key] = trainer = self.trainer_of(folder, objective, ledger, dropout)
            trainer.add_callback(tiny.SaveAt(self.at))
            trainer.train()
        return self._done[key]

    def trainer_of(
        self, folder: Path, objective: str, ledger: dict, dropout: float = 0.1, **changes: Any
    ) -> tiny.EffptTrainer:
        """The trainer of a straight run, or of one that is resumed or compared with it."""
        cut = self.cut_of(ledger) | changes
        return tiny.trainer(
            folder, ledger, objective=objective, dropout=dropout, backbone=self.backbone, save_total_limit=None, **cut
        )

    def cut_of(self, ledger: dict) -> dict[str, int]:
        """How the eight rows of a step are cut into micro-batches."""
        number = 2 if self.accumulates and len(ledger) < 2 else 1
        return {"gradient_accumulation_steps": number, "per_device_train_batch_size": 8 // number}


def checkpoint_of(trainer: tiny.EffptTrainer, step: int) -> Path:
    return Path(trainer.args.output_dir, f"checkpoint-{step}")


def check_resumption(runs: Runs, objective: str, ledger: dict, at: int, dropout: float = 0.1) -> None:
    """Resumes a run at step `at`: weights, optimizer, losses, events and totals are those of the straight run."""
    straight = runs(objective, ledger, dropout)
    resumed = runs.trainer_of(runs.folder / "resumed", objective, ledger, dropout)
    torch.rand(3)  # a resumed process has used its generators otherwise
    resumed.train(resume_from_checkpoint=str(checkpoint_of(straight, at)))

    assert resumed.state.global_step == straight.state.global_step == 8
    tiny.assert_same_weights(straight.model, resumed.model)
    for name in ("events", "layer_order", "layer_widths"):
        assert getattr(resumed.model.config, name) == getattr(straight.model.config, name)
    assert resumed.clock.tokens == straight.clock.tokens >= 8 * 2 * 4 * tiny.LENGTH
    assert resumed.clock.flops == straight.clock.flops
    assert losses_of(straight) == losses_of(resumed)
    assert_same_optimizer(straight, resumed)
    if objective != "mlm":
        assert_tied(resumed.model)


def check_checkpointing(runs: Runs, ledger: dict) -> None:
    """Trains without saved activations: the weights are those of the straight run."""
    straight, trainer = runs("mlm", ledger), runs.trainer_of(runs.folder / "checkpointed", "mlm", ledger)
    tiny.checkpointing(trainer.model)
    trainer.train()
    tiny.assert_same_weights(straight.model, trainer.model)


# The most graphs that compiled layers of a method take, where one does not serve all layers and steps.
GRAPHS = {
    "earlybert": 6,  # each layer has gates of its own, and is cut
    "layerskip": 3,  # for one row, for all, and for any other number of rows
    "lottery": 4,  # each layer has masks of its own
    "selection": 2,  # one is for scores
}
# Layers of a ModernBERT that differ: the first, which has no norm, and those of either kind of attention.
KINDS = 3


def check_compilation(runs: Runs, ledger: dict, counter: Any) -> None:
    """Trains with compiled layers: the losses are those of the straight run, and graphs are few."""
    straight = runs("mlm", ledger)
    trainer = runs.trainer_of(runs.folder / "compiled", "mlm", ledger, compile_layers=True)
    trainer.train()
    kinds = 1 if runs.backbone == "bert" else KINDS
    assert 0 < counter.frame_count <= kinds * max(GRAPHS.get(name, 1) for name in ledger)
    for step, loss in losses_of(straight).items():
        assert losses_of(trainer)[step] == pytest.approx(loss, abs=1e-4), step


def losses_of(trainer: tiny.EffptTrainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def assert_same_optimizer(straight, resumed) -> None:
    by_name = [dict(trainer.model.named_parameters()) for trainer in (straight, resumed)]
    assert by_name[0].keys() == by_name[1].keys()
    for name, parameter in by_name[0].items():
        ours, theirs = straight.optimizer.state[parameter], resumed.optimizer.state[by_name[1][name]]
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def assert_tied(model) -> None:
    for generators, own in model.shared.items():
        assert model.get_parameter(generators) is model.get_parameter(own), own
    for decoder in filter(None, (part.get_output_embeddings() for part in (model, model.generator))):
        assert decoder.weight is model.get_parameter(model.words)


def exported(runs: Runs, objective: str, ledger: dict, finished: bool):
    """The folder of an exported run and its training model, in evaluation mode.

    A finished run is saved as its trainer does; else the checkpoint in the middle of the run is exported.
    """
    trainer = runs(objective, ledger)
    folder = Path(trainer.args.output_dir, "finished" if finished else "halfway")
    if finished:
        trainer.save_model(str(folder))
        model = trainer.model.eval()
        if model.config.layer_widths:  # with code of its own; a stock model is dense
            model.export(dense=True).save_pretrained(folder)
    else:
        model = type(trainer.model).from_pretrained(checkpoint_of(trainer, 4)).eval()
        export(checkpoint_of(trainer, 4), folder, dense=bool(model.config.layer_widths))
    ids = torch.randint(5, tiny.VOCAB, (3, tiny.LENGTH))
    with torch.no_grad():
        headless = type(model).stock_class is ModernBertModel  # of a discriminator
        logits = {} if headless else {"": model(ids).logits}
        if objective != "mlm":
            logits["/generator"] = model.generator(ids).logits
        hidden = model.backbone(ids).last_hidden_state
    discriminates = objective in ("electra", "electra_15")
    torch.save({"ids": ids, "logits": logits, "hidden": hidden, "discriminates": discriminates}, folder / "probe.pt")
    return folder, model


def load_in_a_clean_process(folders: list[Path]) -> None:
    """Loads exports without the package and compares their outputs with those of the training models."""
    run(LOAD, *map(str, folders), folder=folders[0].parent)
