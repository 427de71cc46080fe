"""A snapshot gives a model back all that it held, bit for bit."""

import pytest
import torch

from hf_effpt.core.snapshot import Snapshot
from tests import tiny


def test_what_was_taken_is_put_back():
    model = tiny.model()
    model.register_buffer("counts", torch.arange(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    snapshot = Snapshot(model)
    snapshot.take(model)
    with torch.no_grad():
        for tensor in [*model.parameters(), model.counts]:
            tensor.add_(1)
    assert not torch.equal(model.counts, before["counts"])
    snapshot.put_back(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("objective", ["mlm", "electra", "mcbert"])
def test_it_shares_no_storage_and_holds_what_is_tied_once(objective):
    model = tiny.model() if objective == "mlm" else tiny.joint(objective)
    snapshot = Snapshot(model)
    snapshot.take(model)
    held = list(snapshot.buffers())
    assert not {tensor.data_ptr() for tensor in held} & {p.data_ptr() for p in model.parameters()}
    unique = {id(tensor): tensor.numel() for tensor in model.parameters()}
    assert sum(tensor.numel() for tensor in held) == sum(unique.values())


def test_it_takes_what_a_model_was_given_since():
    """Notes, for example, whose number is known when the text has been counted."""
    model = tiny.model()
    snapshot = Snapshot(model)
    model.register_buffer("notes", torch.ones(2))
    snapshot.take(model)
    model.notes.zero_()
    model.register_buffer("notes", torch.zeros(3))
    snapshot.take(model)
    model.notes.fill_(5)
    snapshot.put_back(model)
    assert model.notes.tolist() == [0.0, 0.0, 0.0]


def test_some_parts_may_be_left_out():
    model = tiny.model()
    model.bert.embeddings.LayerNorm.in_snapshot = False
    held = [name.replace("/", ".") for name in Snapshot(model).state_dict()]
    left_out = {name for name, _ in model.named_parameters()} - set(held)
    assert left_out == {"bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"}
