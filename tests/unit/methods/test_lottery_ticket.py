"""Tickets of single weights: written by one run, kept to by others."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import BertForMaskedLM

import hf_effpt
from hf_effpt import SparseTicket
from hf_effpt.core.errors import EffptError
from hf_effpt.methods.lottery.masks import prunable
from hf_effpt.models import EffptBertForMaskedLM, EffptBertForSequenceClassification
from tests import tiny


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A finished run, its checkpoints, and its ticket."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny.trainer(folder, {"lottery": {"sparsity": 0.6, "rounds": 3}}, save_strategy="steps", save_steps=5,
                           save_total_limit=None)  # fmt: skip
    trainer.train()
    trainer.save_model()
    path = SparseTicket.of(trainer.model).save(folder / "ticket.safetensors")
    return folder, trainer.model, path


def test_a_ticket_is_what_was_saved(pruned):
    _, model, path = pruned
    ticket = SparseTicket.load(path)
    assert set(ticket.masks) == set(prunable(model.bert))
    for name, mask in model.bert.masks.kept().items():
        assert torch.equal(ticket.masks[name], mask)
    assert ticket.sparsity == pytest.approx(0.6, abs=1e-4)
    assert ticket.drawn_by["settings"] == {"sparsity": 0.6, "rounds": 3}
    assert [event["step"] for event in ticket.drawn_by["events"]] == [0, 2, 4, 6]


def test_the_export_is_stock_with_zeros(pruned):
    folder, model, path = pruned
    stock, report = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ticket = SparseTicket.load(path)
    matrices = prunable(stock.bert)
    for name, mask in ticket.masks.items():
        assert torch.equal(matrices[name].weight != 0, mask)
        assert torch.equal(matrices[name].weight, prunable(model.bert)[name].weight)


def test_checkpoints_hold_masks_and_zeros(pruned):
    folder, _, _ = pruned
    half, whole = (EffptBertForMaskedLM.from_pretrained(folder / f"checkpoint-{step}") for step in (5, 8))
    for model, share, rewinds in ((half, 0.4, True), (whole, 0.6, False)):
        masks = model.bert.masks
        assert 1 - int(masks.left(model.bert)) / masks.size(model.bert) == pytest.approx(share, abs=1e-4)
        for name, linear in prunable(model.bert).items():
            assert torch.equal(linear.weight != 0, masks.kept()[name])
        assert model.methods[0].needs_snapshot == rewinds
        assert (model.snapshot is not None) == rewinds


def labelled():
    rows = tiny.rows()
    return Dataset.from_dict({"input_ids": rows["input_ids"], "labels": [row % 2 for row in range(len(rows))]})


def test_another_task_trains_with_the_masks_kept(pruned, tmp_path):
    """The pooler, which a masked language model has not, stays whole."""
    folder, _, path = pruned
    model = EffptBertForSequenceClassification.from_pretrained(
        folder, config=tiny.config({"lottery": {"ticket": str(path)}})
    )
    assert model.snapshot is None
    kept = {name: mask.clone() for name, mask in model.bert.masks.kept().items()}
    assert kept["pooler"].all()
    for name, mask in SparseTicket.load(path).masks.items():
        assert torch.equal(kept[name], mask)
    before = {name: linear.weight.detach().clone() for name, linear in prunable(model.bert).items()}
    trainer = tiny.EffptTrainer(
        model, tiny.arguments(tmp_path, budget="3steps", warmup_steps=0), train_dataset=labelled()
    )
    trainer.train()
    for name, linear in prunable(model.bert).items():
        assert not linear.weight[~kept[name]].any(), name
        moved = linear.weight != before[name]
        assert moved[kept[name]].double().mean() > 0.9, name
        assert torch.equal(model.bert.masks.kept()[name], kept[name])
    assert not model.config.events
    sparsity = [entry["lottery_sparsity"] for entry in trainer.state.log_history if "lottery_sparsity" in entry]
    assert sparsity == pytest.approx(
        [1 - int(model.bert.masks.left(model.bert)) / model.bert.masks.size(model.bert)] * 3
    )


def test_a_resumed_run_needs_no_more_than_its_checkpoint(pruned, tmp_path):
    _, _, path = pruned
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(path.read_bytes())
    model = EffptBertForSequenceClassification(tiny.config({"lottery": {"ticket": str(moved)}}))
    model.save_pretrained(tmp_path / "saved")
    moved.unlink()
    again = EffptBertForSequenceClassification.from_pretrained(tmp_path / "saved")
    for name, mask in model.bert.masks.kept().items():
        assert torch.equal(again.bert.masks.kept()[name], mask)


def test_a_new_model_has_the_zeros_at_once(pruned):
    _, _, path = pruned
    model = tiny.model({"lottery": {"ticket": str(path)}})
    for name, linear in prunable(model.bert).items():
        assert torch.equal(linear.weight != 0, SparseTicket.load(path).masks[name])


def test_loaded_stock_weights_have_the_zeros_at_once(pruned, tmp_path):
    _, _, path = pruned
    tiny.model().export().save_pretrained(tmp_path)
    model = EffptBertForMaskedLM.from_pretrained(tmp_path, config=tiny.config({"lottery": {"ticket": str(path)}}))
    for name, linear in prunable(model.bert).items():
        assert torch.equal(linear.weight != 0, SparseTicket.load(path).masks[name])


def test_masks_learned_by_scores_make_a_ticket_too(tmp_path):
    model = tiny.model({"lottery": {"learn": "supermask"}})
    with torch.no_grad():
        for score in model.bert.masks.scores:
            score.normal_()
    ticket = SparseTicket.load(SparseTicket.of(model).save(tmp_path / "t.safetensors"))
    for name, score in zip(prunable(model.bert), model.bert.masks.scores, strict=True):
        assert torch.equal(ticket.masks[name], score >= 0)


def test_a_ticket_fits_an_encoder_of_another_architecture(pruned):
    _, _, path = pruned
    model = tiny.joint("electra", {"lottery": {"ticket": str(path)}})
    for name, linear in prunable(model.electra).items():
        assert torch.equal(linear.weight != 0, SparseTicket.load(path).masks[name])
    assert all(linear.weight.all() for linear in prunable(model.generator.electra).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "it has 4 layers and the model 3, and they differ in layer.3.down"),
        ({"intermediate_size": 96}, r"layer.0.up of \(64, 32\) and not \(96, 32\)"),
    ],
)
def test_a_ticket_of_another_shape_is_refused(pruned, tmp_path, changes, message):
    _, _, path = pruned
    with pytest.raises(EffptError, match=message):
        tiny.model({"lottery": {"ticket": str(path)}}, **changes)
    tiny.model(**changes).export().save_pretrained(tmp_path)
    config = tiny.config({"lottery": {"ticket": str(path)}}, **changes)
    with pytest.raises(EffptError, match=message):
        EffptBertForMaskedLM.from_pretrained(tmp_path, config=config)


def test_what_is_no_ticket_is_refused(tmp_path):
    for name, content in (("text", b"no ticket"), ("none", None)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EffptError, match="holds no ticket of single weights"):
            tiny.model({"lottery": {"ticket": str(path)}})
    save_file({"layer.0.up": torch.ones(3)}, tmp_path / "numbers", metadata={"drawn_by": "{}"})
    with pytest.raises(EffptError, match="holds no masks"):
        SparseTicket.load(tmp_path / "numbers")
    with pytest.raises(EffptError, match="has no masks of single weights"):
        SparseTicket.of(tiny.model())


def test_the_named_trainer_switches_the_method_on(tmp_path):
    trainer = tiny.trainer(tmp_path, cls=hf_effpt.LotteryTrainer)
    assert trainer.model.config.methods == {"lottery": {}}
    assert trainer.model.snapshot is not None
