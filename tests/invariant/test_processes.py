"""Invariant 9: two processes give the steps of one process with the same global batch."""

import json

import pytest
import torch

from hf_effpt import set_cooccurrence_embeddings
from hf_effpt.training.phases import Phase
from tests import tiny
from tests.together import launch
from tests.unit.methods import notes

# What the settings of `test_four_processes.py` are not; a plain run is the beginning of one that is stacked.
CASES = {
    "layerskip, reweighted": ("mlm", {"layerskip": {"target": 0.4, "estimator": "ste_reweighted"}}),
    "layerskip, reinforce": ("mlm", {"layerskip": {"target": 0.4, "estimator": "reinforce"}}),
    "lottery, supermask": ("mlm", {"lottery": {"learn": "supermask", "rescale": True}}),
    "electra with notes": ("electra", {"tnf": {"k": 2, "min_count": 5, "max_count": 7}}),
    "mcbert": ("mcbert", {}),
    "ModernBERT, layerdrop and notes": (
        "modernbert", {"layerdrop": {"p": 0.4}, "tnf": {"k": 2, "min_count": 5, "max_count": 7}}
    ),
    "ModernBERT, stacking": ("modernbert", {"stacking": {"depth": 1, "at": [0.3, 0.7]}}),
    "ModernBERT, layerskip": ("modernbert", {"layerskip": {"target": 0.4, "estimator": "ste_reweighted"}}),
    "ModernBERT by Muon": ("muon", {"layerdrop": {"p": 0.4}}),
    "next tokens first": ("clm", {"layerdrop": {"p": 0.4}}),
    "ModernBERT, supermask": ("modernbert", {"lottery": {"learn": "supermask", "rescale": True}}),
}  # fmt: skip

SCRIPT = """
import json
from pathlib import Path
from tests.invariant.test_processes import begun, trained
from tests.unit.methods import notes

for name, (objective, methods) in json.loads(sys.argv[2]).items():
    found = trained(Path(sys.argv[1]) / name, objective, methods, rows=2)
    if found:
        torch.save(found, f"{sys.argv[1]}/{name}.pt")
rank = torch.distributed.get_rank()
torch.save(notes.written(rank, 2), f"{sys.argv[1]}/notes-{rank}.pt")
torch.save(begun(seed=rank), f"{sys.argv[1]}/start-{rank}.pt")
"""


def trained(out, objective, methods, rows):
    """What a run of so many rows a micro-batch comes to; nothing where another process says it."""
    optimizer = (
        {"optim": "muon", "learning_rate": 2e-3} if objective == "muon" else {"optim": "sgd", "learning_rate": 0.3}
    )
    data = tiny.rows()
    if objective == "clm":
        data, objective = [Phase(0.0, data, objective="clm"), Phase(0.5, data)], "mlm"
    backbone, objective = ("modernbert", "mlm") if objective in ("modernbert", "muon") else ("bert", objective)
    trainer = tiny.trainer(
        out, methods, objective=objective, backbone=backbone, per_device_train_batch_size=rows,
        gradient_accumulation_steps=2, save_strategy="steps", save_steps=3, budget="6steps", train_dataset=data,
        **optimizer,
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return None
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": tiny.weights(trainer.model), "tokens": trainer.clock.tokens, "flops": trainer.clock.flops,
        "loss": metrics["eval_loss"], "masked": trainer.evaluation["masked_tokens"], "losses": losses,
        "events": trainer.model.config.events,
    }  # fmt: skip


def begun(seed):
    """Word embeddings of a new model from co-occurrence, computed by this seed."""
    torch.manual_seed(0)
    model = tiny.model()
    set_cooccurrence_embeddings(model, tiny.rows(), tiny.tokenizer(), seed=seed)
    return tiny.weights(model)["bert.embeddings.word_embeddings.weight"]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, subtests):
    """Not even what generators sample depends on how many processes there are, nor the notes that each writes."""
    launch(tmp_path / "two", SCRIPT, json.dumps(CASES))
    for name, (objective, methods) in CASES.items():
        with subtests.test(name):
            one = trained(tmp_path / "one" / name, objective, methods, rows=4)
            two = torch.load(tmp_path / "two" / f"{name}.pt")
            if objective == "muon":  # every process computes the update, and is charged for it
                other = trained(tmp_path / "other", "modernbert", methods, rows=4)
                one["flops"] += one["flops"] - other["flops"]
            assert two["tokens"] == one["tokens"]
            assert two["flops"] == pytest.approx(one["flops"], rel=1e-9)
            assert two["masked"] == one["masked"]
            assert two["events"] == one["events"]
            assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
            for weight_name, weight in one["weights"].items():
                assert torch.allclose(weight, two["weights"][weight_name], atol=5e-6), weight_name
            assert (tmp_path / "two" / name / "checkpoint-3" / "rng_state_1.pth").is_file()
    with subtests.test("start"):  # that of the first process
        first, second = (torch.load(tmp_path / "two" / f"start-{rank}.pt") for rank in range(2))
        assert torch.equal(first, second)
        assert torch.allclose(first, begun(seed=0), atol=1e-6)
        assert not torch.allclose(first, begun(seed=1), atol=1e-3)
    with subtests.test("notes"):
        one = notes.written(0, 1)
        first, second = (torch.load(tmp_path / "two" / f"notes-{rank}.pt") for rank in range(2))
        assert torch.equal(first, second)
        assert torch.allclose(first, one, atol=1e-6)
        assert not torch.allclose(one, notes.model().bert.notes.vectors, atol=1e-2)
