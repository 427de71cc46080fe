"""Layers by position: where a layer is stored changes nothing that leaves the model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_effpt import SparseTicket
from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.depth import order_of, set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ledger import record
from hf_effpt.core.ticket import Ticket
from hf_effpt.core.width import cut_width, running_widths
from hf_effpt.methods.lottery.masks import prunable, running_matrices
from hf_effpt.models import EffptBertForMaskedLM, EffptBertModel
from tests import tiny

ORDERS = {
    "bert": [2, 0, 3, 1],  # the layer that runs first is stored third
    "modernbert": [0, 3, 2, 1],  # the first, which has no norm of its own, stays, and kinds of attention alternate
}
SEARCH = {"max_search_steps": 0.4, "every": 1, "epsilon": 0.0, "window": 3}
LEDGERS = {
    "compress in rounds": {
        "compress": {"depth": 2, "head_keep": 0.5, "ffn_keep": 0.5, "at": 0.3, "rounds": 2, "until": 0.6}
    },
    "compress at random": {"compress": {"depth": 2, "ffn_keep": 0.5, "importance": "random", "at": 0.5}},
    "compress by gates": {"compress": {"depth": 3, "ffn_keep": 0.5, "importance": "gates", "at": 0.5}},
    "compress, distilled": {"compress": {"depth": 2, "ffn_keep": 0.5, "importance": "magnitude", "distill": 1.0}},
    "earlybert": {"earlybert": SEARCH},
    "earlybert at random": {"earlybert": {**SEARCH, "ticket": "random"}},
    "layerdrop": {"layerdrop": {"p": 0.6, "rate": "pld", "heads": 0.3}},
    "layerdrop in groups": {"layerdrop": {"p": 0.6, "group": 2}},
    "layerskip": {"layerskip": {"target": 0.4, "evaluation": "hardened"}},
    "lottery": {"lottery": {"sparsity": 0.6, "rounds": 2, "criterion": "random", "signs": "random_sign"}},
    "supermask": {"lottery": {"learn": "supermask"}},
}
# On the other backbone one of each kind: what is read by position is read alike.
RUNS = [("bert", name) for name in LEDGERS]
RUNS += [("modernbert", name) for name in ("compress in rounds", "earlybert", "layerdrop", "lottery")]


def stored(trainer, order):
    """Stores the layers of a new model otherwise, so that they run in the same order as before."""
    backbone = trainer.model.backbone
    layers = [layer.state_dict() for layer in layers_of(backbone).children()]
    copies = [{name: tensor.clone() for name, tensor in layer.items()} for layer in layers]
    for place, index in enumerate(order):
        layers_of(backbone)[index].load_state_dict(copies[place])
    set_order(backbone, order)
    return trainer


def finished(folder, ledger, order=None, backbone="bert"):
    # Without clipping: a norm is a sum, whose order would count.
    trainer = tiny.trainer(folder, ledger, backbone=backbone, max_grad_norm=0.0)
    if order is not None:
        stored(trainer, order)
    trainer.train()
    return trainer


def left(model):
    """Export, events and widths that a model leaves, whatever the order in which its layers are stored."""
    events = [{key: event[key] for key in event if key != "teacher"} for event in model.config.events or []]
    widths = model.config.layer_widths and running_widths(model.backbone)
    return (
        model.export(dense=True).state_dict(),
        events,
        widths,
        [method.metrics(model.backbone, {}) for method in model.methods],
    )


@pytest.mark.parametrize(("backbone", "name"), RUNS)
def test_where_layers_are_stored_does_not_matter(tmp_path, backbone, name):
    plain, other = (
        finished(tmp_path / str(order), LEDGERS[name], order, backbone) for order in (None, ORDERS[backbone])
    )
    ours, theirs = left(plain.model), left(other.model)
    assert ours[1:] == theirs[1:]
    assert ours[0].keys() == theirs[0].keys()
    for key, tensor in ours[0].items():
        assert torch.equal(tensor, theirs[0][key]), key
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (plain, other)]
    assert losses[0] == losses[1]
    (method,) = plain.methods
    if method.name == "earlybert":
        assert method.ticket_of(plain.model.backbone) == other.methods[0].ticket_of(other.model.backbone)
    if method.name == "lottery":
        tickets = [SparseTicket.of(each.model) for each in (plain, other)]
        assert tickets[0].masks.keys() == tickets[1].masks.keys()
        assert all(torch.equal(mask, tickets[1].masks[key]) for key, mask in tickets[0].masks.items())


GROWING = {"depth": [1, 2], "operator": "interpolate", "at": [0.15, 0.3], "rewarmup": 0}


def test_a_grown_model_is_cut_to_every_other_layer_that_runs(tmp_path):
    """After an interpolation the layers 0 and 2 are the first and its own copy."""
    trainer = finished(tmp_path, {"stacking": GROWING, "compress": {"depth": 2, "at": 0.6}})
    assert trainer.model.config.events[-1]["what"] == (
        "cut to 2 layers of 2 heads and 64 neurons: layers at equal distances"
    )
    assert trainer.model.config.events[-1]["kept"] == [0, 2]
    grown = finished(tmp_path / "grown", {"stacking": GROWING})
    whole = order_of(grown.model.bert)
    assert whole != tuple(range(4))
    assert order_of(trainer.model.bert) == (whole[0], whole[2])


def test_cuts_in_rounds_leave_every_other_layer_of_the_whole_model(tmp_path):
    settings = {"depth": 2, "at": 0.6, "rounds": 2, "until": 0.8}
    trainer = tiny.trainer(tmp_path, {"stacking": GROWING, "compress": settings}, saved=[6])
    trainer.train()
    assert [event["kept"] for event in trainer.model.config.events if event["method"] == "compress"] == [
        [0, 2, 3],
        [0, 2],
    ]
    resumed = tiny.trainer(tmp_path / "resumed", {"stacking": GROWING, "compress": settings})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))  # between the cuts
    assert order_of(resumed.model.bert) == order_of(trainer.model.bert)
    tiny.assert_same_weights(trainer.model, resumed.model)


def test_a_ticket_is_that_of_the_export(tmp_path):
    """Tickets of single weights, and of heads and neurons, after a growth that permutes the layers."""
    trainer = finished(tmp_path / "single", {"stacking": GROWING, "lottery": {"sparsity": 0.6, "rounds": 1}})
    ticket = SparseTicket.load(SparseTicket.of(trainer.model).save(tmp_path / "t.safetensors"))
    for name, linear in prunable(trainer.model.export().bert).items():
        assert torch.equal(linear.weight != 0, ticket.masks[name]), name
    trainer = finished(tmp_path / "whole", {"stacking": GROWING, "earlybert": {**SEARCH, "max_search_steps": 0.2}})
    trainer.save_model()
    saved = Ticket.load(tmp_path / "whole" / "ticket.json")
    run = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert saved.widths == trainer.model.export().config.layer_widths == run["ledger"]["layer_widths"]
    again = tiny.model(num_hidden_layers=4)
    cut_width(again.bert, saved)
    assert running_widths(again.bert) == saved.widths


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@pytest.mark.parametrize("kind", ["heads and neurons", "single weights"])
def test_a_ticket_is_read_by_position(tmp_path, kind, backbone):
    model, order = tiny.masked_lm(backbone), [3, 1, 0, 2] if backbone == "bert" else [0, 3, 1, 2]
    if kind == "single weights":
        masks = {name: torch.rand(linear.weight.shape) < 0.5 for name, linear in prunable(model.backbone).items()}
        path = SparseTicket(masks).save(tmp_path / "t.safetensors")
        model = tiny.masked_lm(backbone, {"lottery": {"ticket": str(path)}}, layer_order=order)
        for linear, mask in zip(running_matrices(model.backbone).values(), masks.values(), strict=True):
            assert torch.equal(linear.weight != 0, mask)
        return
    neurons = tuple(tuple(range(8 * (1 + place))) for place in range(4))
    path = Ticket(((0,),) * 4, neurons, ((2, 64),) * 4).save(tmp_path / "ticket.json")
    stack_of(model.backbone)
    set_order(model.backbone, order)
    cut_width(model.backbone, Ticket.load(path))
    assert running_widths(model.backbone) == [[1, 8], [1, 16], [1, 24], [1, 32]]
    assert [model.config.layer_widths[index] for index in order] == running_widths(model.backbone)


def old_files(folder):
    """Tickets as the first version wrote them: layers by index, and no version."""
    shape = [[2, 64]] * 4
    content = {"heads": [[0], [1], [0, 1], []], "neurons": [[index] for index in range(4)], "shape": shape}
    (folder / "ticket.json").write_text(json.dumps(content | {"drawn_by": {"ticket": "michel"}}))
    masks = {f"layer.{index}.up": torch.arange(8) < index for index in range(4)} | {"pooler": torch.arange(8) < 5}
    save_file(masks, folder / "t.safetensors", metadata={"drawn_by": "{}"})
    return folder / "ticket.json", folder / "t.safetensors"


@pytest.mark.parametrize("order", [None, [0, 2, 1, 3]])
def test_tickets_of_older_versions_are_read_by_the_record_beside_them(tmp_path, order):
    whole, single = old_files(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"ledger": {"layer_order": order}}))
    order = order or range(4)
    assert Ticket.load(whole).neurons == tuple((index,) for index in order)
    assert Ticket.load(whole).drawn_by == {"ticket": "michel"}
    assert {name: int(mask.sum()) for name, mask in SparseTicket.load(single).masks.items()} == {
        **{f"layer.{place}.up": index for place, index in enumerate(order)},
        "pooler": 5,
    }


def test_tickets_of_older_versions_are_refused_where_their_order_is_unknown(tmp_path):
    for load, path in zip((Ticket.load, SparseTicket.load), old_files(tmp_path), strict=True):
        with pytest.raises(EffptError, match=r"written by an older version.*run.json.*none beside it"):
            load(path)


def test_a_model_cut_by_an_older_version_goes_on_or_is_refused(tmp_path):
    settings = {"compress": {"depth": 2, "rounds": 2}}
    config = tiny.config(settings, layer_order=[0, 2, 3])
    record(config, 5, "compress", "cut to 3 layers")
    assert EffptBertForMaskedLM(config).methods[0]._left_of(config) == (4, [0, 2, 3])
    config = tiny.config(settings, layer_order=[0, 2, 3])
    record(config, 3, "stacking", "grew from 2 to 4 layers by interpolate")
    record(config, 5, "compress", "cut to 3 layers")
    with pytest.raises(EffptError, match="older version of `compress` has made a first cut"):
        EffptBertForMaskedLM(config)


def test_the_order_of_the_configuration_holds_without_methods():
    torch.manual_seed(3)
    whole = EffptBertModel(tiny.config()).eval()
    torch.manual_seed(3)
    model = EffptBertModel(tiny.config(layer_order=[3, 1])).eval()
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    hidden = whole.embeddings(ids)
    for index in (3, 1):
        hidden = whole.encoder.layer[index](hidden)
    assert torch.allclose(model(ids).last_hidden_state, hidden, atol=1e-6)
    assert torch.allclose(model.export()(ids).last_hidden_state, hidden, atol=1e-6)


def test_the_order_of_a_modernbert_holds_without_methods():
    torch.manual_seed(3)
    model, ids = tiny.masked_lm("modernbert", layer_order=[0, 3]).eval(), torch.randint(5, tiny.VOCAB, (2, 6))
    ran = []
    for index, layer in enumerate(layers_of(model.backbone).children()):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    logits = model(ids).logits
    assert ran == [0, 3]
    assert torch.allclose(model.export()(ids).logits, logits, atol=1e-6)
