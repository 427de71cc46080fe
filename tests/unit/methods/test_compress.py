"""What `compress` cuts, when, and what stays the same; on a model and optimizer of its own, without a run."""

import copy

import pytest
import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import NAME
from hf_effpt.core.registry import build_methods
from hf_effpt.core.width import widths_of
from hf_effpt.methods.compress.plan import Size, cut_at, size_after, thinned
from tests import tiny

WIDE = {"num_attention_heads": 4, "intermediate_size": 64}


def compressed(fraction=0.7, **settings):
    """A model before and after what happens at a fraction of the clock."""
    by = {"importance": "magnitude"} if {"head_keep", "ffn_keep"} & {*settings} else {}
    model = tiny.model({"compress": {**by, **settings}}, **WIDE).eval()
    before = copy.deepcopy(model)
    changed = model.methods[0].advance(model.bert, RunContext(7, fraction))
    return before, model, changed


def outputs(model):
    ids = torch.arange(5, 35).reshape(2, 15)
    with torch.no_grad():
        return model(ids).logits


def test_plan_by_hand():
    assert cut_at(0.5, 0.9, 3) == pytest.approx([0.5, 0.7, 0.9])
    assert cut_at(0.7, 0.85, 1) == [0.7]
    whole, wanted = Size(12, 12, 3072), Size(6, 8, 1536)
    assert [size_after(done, 2, whole, wanted) for done in (0, 1, 2)] == [whole, Size(9, 10, 2304), wanted]
    assert thinned(tuple(range(12)), 12, 6, 6) == [0, 2, 4, 6, 8, 10]
    assert thinned(tuple(range(12)), 12, 6, 9) == [0, 2, 3, 4, 6, 7, 8, 10, 11]
    assert thinned((0, 2, 3, 4, 6, 7, 8, 10, 11), 12, 6, 6) == [0, 2, 4, 6, 8, 10]
    assert thinned((0, 1, 2, 3), 4, 4, 4) == [0, 1, 2, 3]


def test_nothing_is_cut_before_its_time():
    before, model, changed = compressed(0.69, head_keep=0.5)
    assert not changed
    assert not model.config.events
    assert torch.equal(outputs(before), outputs(model))


def test_the_cut_model_is_the_large_one_with_the_others_at_zero():
    before, model, changed = compressed(head_keep=0.5, ffn_keep=0.5)
    assert changed
    assert [heads for heads, _ in widths_of(model.bert)] == [2] * 4
    assert sum(neurons for _, neurons in widths_of(model.bert)) == 4 * 32
    assert not torch.allclose(outputs(before), outputs(model), atol=1e-3)
    dense = model.export(dense=True)
    assert dense.num_parameters() == before.num_parameters() > model.num_parameters()
    assert torch.allclose(outputs(dense), outputs(model), atol=1e-6)
    with torch.no_grad():  # the same by hand: what is not kept, by the norm of its weights, adds nothing
        for index, layer in enumerate(before.bert.encoder.layer.children()):
            own, mixing = layer.attention.self, layer.attention.output.dense
            norms = sum(part.weight.square().sum(1) for part in (own.query, own.key, own.value))
            norms = (norms + mixing.weight.square().sum(0)).reshape(4, -1).sum(1)
            for head in norms.argsort()[:2]:
                mixing.weight[:, 8 * head : 8 * head + 8] = 0
            neurons = layer.intermediate.dense.weight.square().sum(1) + layer.output.dense.weight.square().sum(0)
            gone = neurons.argsort()[: 64 - widths_of(model.bert)[index][1]]
            layer.output.dense.weight[:, gone] = 0
    assert torch.allclose(outputs(before), outputs(model), atol=1e-6)


def test_fewer_layers_are_a_shorter_order_and_a_stock_export():
    before, model, changed = compressed(depth=2)
    assert not changed
    assert model.config.layer_order == [0, 2]
    assert model.config.layer_widths is None
    (event,) = model.config.events
    assert event["what"] == "cut to 2 layers of 4 heads and 64 neurons: layers at equal distances"
    assert (event["layers"], event["kept"]) == (4, [0, 2])
    stack_of(before.bert).order = (0, 2)
    assert torch.equal(outputs(before), outputs(model))
    stock = model.export()
    assert type(stock).__module__.startswith("transformers.")
    assert stock.config.num_hidden_layers == 2
    assert torch.allclose(outputs(stock), outputs(model), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"depth": 2, "importance": "random"}, "cut to 2 layers of 4 heads and 64 neurons: layers at random"),
        (
            {"ffn_keep": 0.5, "importance": "magnitude"},
            "cut to 4 layers of 4 heads and 32 neurons: neurons by magnitude",
        ),
        (
            {"depth": 2, "head_keep": 0.5, "importance": "magnitude"},
            "cut to 2 layers of 2 heads and 64 neurons: layers at equal distances, heads by magnitude",
        ),
    ],
)
def test_the_record_names_the_criterion_of_what_was_cut(settings, told):
    model = tiny.model({"compress": settings}, **WIDE)
    model.methods[0].advance(model.bert, RunContext(7, 0.7))
    assert model.config.events[-1]["what"] == told


def test_a_narrow_export_is_as_small_as_the_model():
    _, model, _ = compressed(depth=2, head_keep=0.5, ffn_keep=0.5)
    narrow = model.export()
    assert torch.allclose(outputs(narrow), outputs(model), atol=1e-6)
    assert narrow.config.num_hidden_layers == 2
    whole = tiny.model({}, **WIDE, num_hidden_layers=2)
    layer = 3 * (32 * 16 + 16) + 32 * 16 + 32 * 32 * 2 + 32  # what is cut away of each: heads, neurons, their biases
    assert whole.num_parameters() - narrow.num_parameters() == 2 * layer


def test_layers_that_are_left_out_keep_their_width():
    _, model, _ = compressed(depth=2, ffn_keep=0.5)
    widths = widths_of(model.bert)
    assert [widths[index] for index in (1, 3)] == [[4, 64]] * 2
    assert widths[0][1] + widths[2][1] == 64


def test_rounds_take_equal_shares_and_a_long_step_takes_all():
    _, model, _ = compressed(0.5, head_keep=0.25, ffn_keep=0.5, at=0.5, rounds=3, until=0.9)
    method = model.methods[0]
    found = []
    for step, fraction in ((8, 0.6), (9, 0.7), (10, 0.95), (11, 1.0)):
        found.append((widths_of(model.bert)[0][0], method.changes_parameters))
        method.advance(model.bert, RunContext(step, fraction))
    assert found == [(3, True), (3, True), (2, True), (1, False)]
    assert [event["step"] for event in model.config.events] == [7, 9, 10]
    assert (
        model.config.events[1]["what"]
        == "cut to 4 layers of 2 heads and 43 neurons: heads and neurons by magnitude, 2 of 3"
    )
    _, at_once, _ = compressed(1.0, head_keep=0.25, ffn_keep=0.5, at=0.5, rounds=3, until=0.9)
    assert [event["step"] for event in at_once.config.events] == [7] * 3
    assert widths_of(at_once.bert)[0][0] == 1


def test_gates_are_folded_at_the_cut_and_in_an_export_before_it():
    model = tiny.model({"compress": {"head_keep": 0.5, "importance": "gates", "at": 0.5}}, **WIDE).eval()
    method, gates = model.methods[0], getattr(model.bert, NAME)
    whole = outputs(model)
    method.schedule(model.bert, RunContext(3, 0.39, seed=7))
    assert not gates.on
    assert method.penalty(model.bert) is None
    method.schedule(model.bert, RunContext(4, 0.4, seed=7))
    assert gates.on
    assert torch.equal(outputs(model), whole)
    assert method.penalty(model.bert).item() == pytest.approx(1e-4 * 4 * (4 + 64))
    with torch.no_grad():
        for gate in gates.heads:
            gate.copy_(torch.tensor([0.5, 1.2, -1.3, 0.2]))
    gated = outputs(model)
    assert not torch.allclose(gated, whole, atol=1e-4)
    assert torch.allclose(outputs(model.export()), gated, atol=1e-6)
    with torch.no_grad():
        for gate in gates.heads:
            gate[[0, 3]] = 0.0
    kept = outputs(model)
    assert method.advance(model.bert, RunContext(5, 0.5))
    assert torch.allclose(outputs(model), kept, atol=1e-6)
    assert not list(getattr(model.bert, NAME).parameters())
    method.schedule(model.bert, RunContext(6, 0.6, seed=7))
    assert method.penalty(model.bert) is None
    assert torch.allclose(outputs(model.export(dense=True)), kept, atol=1e-6)


def test_defaults_are_those_of_early_bert_only_where_nothing_is_said():
    (plain,) = build_methods({"compress": {}}, tiny.config(num_attention_heads=4, intermediate_size=128))
    assert plain.sizes(tiny.config(num_attention_heads=4, intermediate_size=128))[1] == Size(4, 3, 77)
    (deep,) = build_methods({"compress": {"depth": 2}}, tiny.config())
    assert deep.sizes(tiny.config())[1] == Size(2, 2, 64)
    assert not deep.changes_parameters
    assert plain.changes_parameters


def test_measuring_on_text_takes_a_trainer():
    with pytest.raises(EffptError, match="use a Trainer, or `magnitude`"):
        compressed(importance="michel", head_keep=0.5)


# Cuts that cut nothing.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head_keep": 0.9, "ffn_keep": 0.5}, r"`compress\.head_keep` is 0\.9, which keeps all of the 2"),
        ({"head_keep": 0.5, "ffn_keep": 0.99}, r"`compress\.ffn_keep` is 0\.99, which keeps all of the 64.*0\.969"),
    ],
)
def test_cuts_that_would_cut_nothing_are_refused_before_the_first_and_go_on_after_it(settings, words):
    with pytest.raises(EffptError, match=words):
        build_methods({"compress": settings}, tiny.config())
    begun = [{"step": 1, "method": "compress", "what": "cut", "layers": 4, "kept": [0, 1, 2, 3]}]
    build_methods({"compress": settings}, tiny.config(events=begun))


def test_a_round_in_which_no_part_goes_says_so():
    model = tiny.model({"compress": {"depth": 3, "at": 0.2, "rounds": 4}})
    (method,) = model.methods
    for fraction in (0.2, 0.5, 0.7, 0.9):
        method.advance(model.bert, RunContext(1, fraction))
    assert [event["what"].partition(" of ")[0] for event in model.config.events] == [
        "left at 4 layers", "left at 4 layers", "cut to 3 layers", "left at 3 layers",
    ]  # fmt: skip


def test_as_many_cuts_as_parts_each_remove_one_and_name_it():
    model = tiny.model({"compress": {"depth": 2, "head_keep": 0.5, "importance": "magnitude", "at": 0.2, "rounds": 2}})
    (method,) = model.methods
    for fraction in (0.2, 0.9):
        method.advance(model.bert, RunContext(1, fraction))
    assert [event["what"].partition(": ")[2] for event in model.config.events] == [
        "layers at equal distances, 1 of 2", "layers at equal distances, heads by magnitude, 2 of 2",
    ]  # fmt: skip
