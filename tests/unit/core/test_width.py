"""Narrower layers: function and gradients are those of the masked model, and the optimizer follows."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from hf_effpt.core.anatomy import attention_of, feed_forward_of, layers_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.ticket import Ticket, draw
from hf_effpt.core.width import ELEMENTWISE, cut_state, cut_width, head_columns, resize, widen, widths_of
from hf_effpt.models import EffptBertForMaskedLM

from .cutting import HEADS, NEURONS, TICKET, mask, padded, wide


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cut_and_masked_are_the_same_function_with_the_same_gradients(attention):
    masked, cut = mask(wide(attention)), wide(attention)
    whole = dict(cut.named_parameters())
    cuts = cut_width(cut.bert, TICKET)
    losses = [model(**padded()).loss for model in (masked, cut)]
    logits = [model(**{**padded(), "labels": None}).logits for model in (masked, cut)]
    assert torch.allclose(*losses, atol=2e-6)
    assert torch.allclose(*logits, atol=1e-5)
    for loss in losses:
        loss.backward()
    own = {id(parameter): name for name, parameter in masked.named_parameters()}
    by_name = dict(masked.named_parameters())
    assert len(own) == len(list(cut.parameters()))
    of = {id(new): (dim, index) for _, new, dim, index in cuts}
    for name, parameter in cut.named_parameters():
        gradient = by_name[name].grad
        if id(parameter) in of:
            dim, index = of[id(parameter)]
            gradient = gradient.index_select(dim, index)
            assert torch.equal(parameter, whole[name].index_select(dim, index)), name
        if parameter.numel():
            assert torch.allclose(parameter.grad, gradient, atol=1e-5), name


def test_it_has_as_many_parameters_as_it_says():
    model = wide()
    before, hidden, head = model.num_parameters(), 32, 8
    cut_width(model.bert, TICKET)
    assert model.config.layer_widths == widths_of(model.bert) == TICKET.widths == [[2, 3], [0, 1], [1, 16], [4, 4]]
    heads, neurons = 16 - sum(map(len, HEADS)), 64 - sum(map(len, NEURONS))
    assert model.num_parameters() == before - heads * (4 * hidden * head + 3 * head) - neurons * (2 * hidden + 1)
    for layer, (heads, neurons) in zip(layers_of(model.bert).children(), TICKET.widths, strict=True):
        assert attention_of(layer).inner[0].out_features == attention_of(layer).output.in_features == heads * head
        assert feed_forward_of(layer).up.out_features == feed_forward_of(layer).down.in_features == neurons
        assert (layer.attention.self.num_attention_heads, layer.attention.self.all_head_size) == (heads, heads * head)


def test_encoder_flops_of_the_published_ticket():
    """8 of 12 heads and 60 % of the neurons of BERT-base: 0.622 of the linear FLOPs; without data or weights."""

    def flops(ticket=None):
        with torch.device("meta"):
            encoder = BertModel(BertConfig(num_hidden_layers=12, attn_implementation="eager"))
        if ticket is not None:
            cut_width(encoder, ticket)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            encoder.encoder(torch.empty(1, 128, 768))
        return counter.get_total_flops()

    ticket = draw([torch.ones(12)] * 12, [torch.rand(3072) for _ in range(12)], 8, round(0.6 * 12 * 3072))
    assert flops(ticket) / flops() == pytest.approx(0.62, abs=0.01)


def test_a_ticket_of_another_shape_is_refused():
    with pytest.raises(EffptError, match="drawn from layers of 1 times"):
        cut_width(wide().bert, Ticket(((0,),), ((0,),), ((4, 16),)))


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_the_state_of_an_optimizer_is_cut_alike(kind):
    """The next step of every weight is that of the uncut model, given the same gradients."""
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    cut, whole = wide(), wide()
    optimizers = [kind(model.parameters(), lr=1e-2, **settings) for model in (whole, cut)]
    for model, optimizer in zip((whole, cut), optimizers, strict=True):
        model(**padded()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    names = {id(parameter): name for name, parameter in cut.named_parameters()}
    cuts = cut_width(cut.bert, TICKET)
    cut_state(optimizers[1], cuts)
    fresh = {names[id(old)]: (new, dim, index) for old, new, dim, index in cuts}
    optimizers[1].param_groups[0]["params"] = list(cut.parameters())
    assert not {id(old) for old, *_ in cuts} & {id(parameter) for parameter in optimizers[1].state}
    for name, parameter in whole.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        own, dim, index = fresh.get(name, (cut.get_parameter(name), 0, torch.arange(len(parameter))))
        own.grad = parameter.grad.index_select(dim, index)
    for optimizer in optimizers:
        optimizer.step()
    for name, (own, dim, index) in fresh.items():
        assert torch.equal(own, whole.get_parameter(name).index_select(dim, index)), name


def test_a_model_is_built_as_narrow_as_its_configuration_says(tmp_path):
    model = wide().eval()
    cut_width(model.bert, TICKET)
    model.save_pretrained(tmp_path)
    again = EffptBertForMaskedLM.from_pretrained(tmp_path).eval()
    assert again.config.layer_widths == widths_of(again.bert) == TICKET.widths
    inputs = {**padded(), "labels": None}
    assert torch.allclose(again(**inputs).logits, model(**inputs).logits, atol=1e-6)


def test_widening_keeps_the_function_and_undoes_the_shape():
    model = wide()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    cut_width(model.bert, TICKET)
    inputs = {**padded(), "labels": None}
    before = model(**inputs).logits
    dense = copy.deepcopy(model)
    widen(dense.bert)
    assert torch.allclose(dense(**inputs).logits, before, atol=1e-5)
    assert {name: parameter.shape for name, parameter in dense.named_parameters()} == shapes
    assert dense.config.layer_widths is None
    assert model.config.layer_widths == TICKET.widths


def test_resizing_says_nothing_of_weights():
    model = wide()
    resize(model.bert, [[1, 2], [4, 16], [0, 1], [3, 5]])
    assert widths_of(model.bert) == [[1, 2], [4, 16], [0, 1], [3, 5]]


def test_columns_of_heads():
    assert head_columns([0, 2], 3).tolist() == [0, 1, 2, 6, 7, 8]
    assert head_columns([], 3).tolist() == []
