"""ModernBERT's own parts: layers of two kinds, a first layer without a norm, fused projections."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, ModernBertForMaskedLM, ModernBertModel

from hf_effpt.core.anatomy import attention_of, feed_forward_of, layers_of
from hf_effpt.core.depth import flatten, set_order, stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.gates import magnitude
from hf_effpt.core.registry import build_methods
from hf_effpt.core.ticket import Ticket
from hf_effpt.core.width import cut_width, running_widths
from hf_effpt.models.base import dense_of
from hf_effpt.models.build import config_for
from hf_effpt.models.pruned_modernbert import PrunedModernBertConfig, PrunedModernBertForMaskedLM
from hf_effpt.models.sparse_layer import encode_at
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.recipe.settings import SIZES, ModelSettings
from tests import tiny

FULL, SLIDING = "full_attention", "sliding_attention"


def model(methods=None, **changes):
    torch.manual_seed(4)
    return tiny.masked_lm("modernbert", methods, **changes).eval()


def words(rows=2):
    return torch.randint(5, tiny.VOCAB, (rows, tiny.LENGTH), generator=torch.Generator().manual_seed(9))


def recipe(**model_settings):
    return Recipe.load(
        {
            "model": {"backbone": "modernbert", **model_settings},
            "data": {"dataset": "d", "sequence_length": 64},
            "training": {"output_dir": "o"},
        }
    )


# The last layer at some positions only.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("last", [FULL, SLIDING])
@pytest.mark.parametrize("padded", [True, False])
def test_the_last_layer_at_some_positions(attention, last, padded):
    encoder = model(layer_types=[FULL, FULL, FULL, last], local_attention=4).model
    encoder.set_attn_implementation(attention)
    ids, at = words(), torch.tensor([[1, 7, 7], [0, 3, 9]])
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 11:] = 0
    whole = encoder(ids, attention_mask=mask).last_hidden_state
    _, some = encode_at(encoder, at, ids, attention_mask=mask)
    assert some.shape == (2, 3, 32)
    assert torch.allclose(some, whole.gather(1, at[:, :, None].expand(-1, -1, 32)), atol=1e-6)


def test_a_projection_of_another_class_is_computed_whole():
    """One with masks or adapters adds more than its matrix says."""

    class Doubling(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    encoder = model().model
    layers_of(encoder)[3].attn.Wqkv.__class__ = Doubling
    ids, at = words(), torch.tensor([[2], [5]])
    _, some = encode_at(encoder, at, ids)
    assert torch.allclose(some[:, 0], encoder(ids).last_hidden_state[[0, 1], [2, 5]], atol=1e-6)


# Cuts of width.


def ticket_of(encoder, heads, neurons):
    shape = tuple(map(tuple, running_widths(encoder)))
    return Ticket(heads=(heads,) * len(shape), neurons=(neurons,) * len(shape), shape=shape)


@pytest.mark.parametrize("heads", [(1,), ()])
def test_a_cut_equals_the_model_with_zeros(heads):
    cut, zeroed = model(), model()
    neurons = tuple(range(0, 64, 3))
    for layer in layers_of(zeroed.model).children():
        with torch.no_grad():
            for head in {0, 1} - {*heads}:
                attention_of(layer).output.weight[:, 16 * head : 16 * (head + 1)] = 0
            feed_forward_of(layer).down.weight[:, [n for n in range(64) if n not in neurons]] = 0
    cut_width(cut.model, ticket_of(cut.model, heads, neurons))
    assert running_widths(cut.model) == [[len(heads), len(neurons)]] * 4
    assert layers_of(cut.model)[0].mlp.Wi.weight.shape == (2 * len(neurons), 32)
    assert torch.allclose(cut(words()).logits, zeroed(words()).logits, atol=1e-5)
    labels = torch.where(torch.arange(tiny.LENGTH) % 5 == 1, words(), -100)
    assert torch.allclose(cut(words(), labels=labels).loss, zeroed(words(), labels=labels).loss, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("heads", [(0,), ()])
def test_a_narrow_export_brings_its_code_and_a_dense_one_is_stock(tmp_path, heads, attention):
    ours = model()
    ours.set_attn_implementation(attention)
    cut_width(ours.model, ticket_of(ours.model, heads, (1, 2, 40)))
    expected = ours(words()).logits
    exported = ours.export()
    assert type(exported) is PrunedModernBertForMaskedLM
    assert exported.config.layer_widths == [[len(heads), 3]] * 4
    exported.save_pretrained(tmp_path)
    assert {"configuration_pruned_modernbert.py", "modeling_pruned_modernbert.py"} <= {
        p.name for p in tmp_path.iterdir()
    }
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.allclose(again(words()).logits, expected, atol=1e-5)
    assert torch.allclose(AutoModel.from_pretrained(tmp_path)(words())[0], ours.model(words())[0], atol=1e-5)
    for dense in (ours.export(dense=True), dense_of(exported)):
        assert type(dense) is ModernBertForMaskedLM
        assert torch.allclose(dense(words()).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "widths", [[[2, 64]] * 3, [[3, 64]] * 4, [[2, 0]] * 4, [[2, 65]] * 4, [[2]] * 4, [[2, 1.5]] * 4, [[-1, 4]] * 4]
)
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match=r"`layer_widths` is .* 4 layers .* 0 to 2 attention heads"):
        PrunedModernBertConfig(**tiny.MODERN, layer_widths=widths)


def test_importance_by_magnitude_adds_up_all_rows_of_a_part():
    encoder = model().model
    layer = layers_of(encoder)[0]
    heads, neurons = magnitude(encoder)
    fused, out = layer.attn.Wqkv.weight.unflatten(0, (3, 2, 16)), layer.attn.Wo.weight.unflatten(1, (2, 16))
    assert torch.allclose(heads[0][1], (fused[:, 1].square().sum() + out[:, 1].square().sum()).sqrt())
    gated, down = layer.mlp.Wi.weight, layer.mlp.Wo.weight
    of_five = gated[5].square().sum() + gated[64 + 5].square().sum() + down[:, 5].square().sum()
    assert torch.allclose(neurons[0][5], of_five.sqrt())


# Depth.


def test_a_copy_of_the_first_layer_keeps_a_norm_of_its_own():
    stack = stack_of(model(layer_types=[FULL] * 4).model)
    stack.copy_layer(0, 2)
    assert torch.equal(stack[2].attn_norm.weight, torch.ones(32))
    assert torch.equal(stack[2].attn.Wqkv.weight, stack[0].attn.Wqkv.weight)


def test_kinds_of_layers_go_along_with_their_order():
    ours = model()
    set_order(ours.model, [0, 3, 2])
    expected = ours(words()).logits
    stock = ours.export()
    assert stock.config.layer_types == [FULL, SLIDING, FULL]
    assert ours.config.stock().layer_types == stock.config.layer_types
    assert torch.allclose(stock(words()).logits, expected, atol=1e-6)


def test_no_other_layer_can_be_the_first():
    ours = model()
    set_order(ours.model, [1, 2, 3])
    with pytest.raises(EffptError, match=r"Layer 1 cannot be the first of a ModernBERT.*Keep layer 0 before it"):
        ours.export()
    with pytest.raises(EffptError, match="Layer 1 cannot be the first"):
        flatten(ours.model)


@pytest.mark.parametrize(
    ("types", "settings"),
    [
        ([FULL, SLIDING] * 2, {"depth": 1, "at": [0.3, 0.7]}),
        ([SLIDING, FULL, FULL, FULL], {"depth": 2, "at": [0.5]}),
        ([FULL, SLIDING, SLIDING, FULL], {"operator": "midas", "at": [0.2, 0.4, 0.7]}),
        ([FULL, SLIDING, FULL, FULL], {"operator": "append_top", "depth": 2, "at": [0.5]}),
    ],
)
def test_growth_across_kinds_of_attention_is_refused(types, settings):
    with pytest.raises(EffptError, match=r"would copy layer \d, of \w+, to layer \d, of \w+, when \d layers become"):
        build_methods({"stacking": settings}, tiny.modern_config(layer_types=types))


@pytest.mark.parametrize("operator", ["stack", "ligo_depth", "identity"])
def test_growth_within_kinds_of_attention(operator):
    settings = {"operator": operator, "depth": 2, "at": [0.5]}
    build_methods({"stacking": settings}, tiny.modern_config(layer_types=[FULL, SLIDING] * 2))


def test_an_identity_layer_adds_nothing():
    """ModernBERT normalizes the inputs of its layers, so that one without output changes nothing."""
    grown = model({"stacking": {"operator": "identity", "depth": 2, "at": [0.5]}})
    (method,) = grown.methods
    before = grown(words()).logits
    from hf_effpt.core.context import RunContext

    method.advance(grown.model, RunContext(4, 0.6))
    assert grown.config.layer_order == [0, 1, 2, 3]
    assert torch.allclose(grown(words()).logits, before, atol=1e-5)


# Configurations and recipes.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": [FULL] * 3}, r"`layer_types` is .* for each of 4 layers"),
        ({"layer_types": ["local"] * 4}, r"`layer_types` is \['local'"),
        ({"local_attention": 1}, "`local_attention` is 1, but a window has at least 2"),
        ({"pad_token_id": tiny.VOCAB}, "`pad_token_id` is 128, but the vocabulary has rows 0 to 127"),
    ],
)
def test_impossible_configurations_are_refused(changes, said):
    with pytest.raises(EffptError, match=said):
        tiny.modern_config(**changes)


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes_have_about_as_many_parameters_as_those_of_bert(size):
    """Parameters of the layers are compared: a ModernBERT has no table of positions, and no biases."""
    numbers = []
    for backbone in tiny.BACKBONES:
        config = ModelSettings(backbone=backbone, size=size, num_hidden_layers=1).config(vocab_size=64)
        assert config.intermediate_size % 64 == 0
        with torch.device("meta"):
            layers = layers_of(hidden_encoder(config))
        numbers.append(sum(parameter.numel() for parameter in layers.parameters()))
    assert numbers[1] == pytest.approx(numbers[0], rel=0.05)


def hidden_encoder(config):
    stock = config.stock()
    return ModernBertModel(stock) if "modern" in config.model_type else AutoModel.from_config(stock)


def test_a_recipe_sets_windows_and_rotations():
    settings = {"layer_types": [SLIDING, FULL], "local_attention": 8, "rotary_base": 10_000, "num_hidden_layers": 2}
    config = recipe(size="tiny", **settings).model.config()
    assert config.layer_types == [SLIDING, FULL]
    assert (config.local_attention, config.sliding_window) == (8, 4)
    assert [config.rope_parameters[kind]["rope_theta"] for kind in (FULL, SLIDING)] == [10_000, 10_000]
    usual = recipe(num_hidden_layers=4).model.config()
    assert usual.layer_types == [FULL, SLIDING, SLIDING, FULL]
    assert [usual.rope_parameters[kind]["rope_theta"] for kind in (FULL, SLIDING)] == [160_000, 10_000]
    assert config_for("mlm", "modernbert", **tiny.MODERN).stock().model_type == "modernbert"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"local_attention": 65}, r"`model\.local_attention` is 65, but must be at most `data\.sequence_length`, 64"),
        ({"layer_types": [FULL]}, r"`layer_types` is \['full_attention'\]"),
        ({"backbone": "bert", "rotary_base": 1e4}, r"`model\.rotary_base` is 10000\.0, which has an effect only with"),
    ],
)
def test_recipes_that_cannot_be_are_refused(settings, said):
    with pytest.raises(EffptError, match=said):
        recipe(**settings)
