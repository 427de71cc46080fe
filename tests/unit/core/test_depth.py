import copy

import pytest
import torch
from torch import nn

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.depth import LayerStack, first_layers, flatten, router_of, running, set_order, stack_of
from hf_effpt.core.errors import EffptError
from tests import tiny


def test_iterates_the_order_and_leaves_out_what_is_dropped_in_training():
    stack = LayerStack(nn.Linear(2, 2) for _ in range(4))
    stack.order = (0, 2, 1)
    stack.dropped = frozenset({2})
    assert stack.train().active == (0, 1)
    assert list(stack) == [stack[0], stack[1]]
    assert stack.eval().active == (0, 2, 1)
    assert len(stack) == 4


def test_empty_never_means_all():
    stack = LayerStack(nn.Linear(2, 2) for _ in range(3)).train()
    stack.dropped = frozenset(range(3))
    assert list(stack) == []
    stack.dropped, stack.order = frozenset(), ()
    assert list(stack) == []
    model = tiny.model(layer_order=[])
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    assert torch.equal(model.eval().bert(ids).last_hidden_state, model.bert.embeddings(ids))


def test_a_router_is_no_submodule_of_the_stack():
    """It may be one of the backbone, whose parameters have one name each."""
    model = tiny.model()
    model.bert.router = nn.Linear(2, 2)
    names = set(model.state_dict())
    stack_of(model.bert).router = model.bert.router
    assert set(model.state_dict()) == names
    assert router_of(model.bert) is model.bert.router
    assert router_of(copy.deepcopy(model).bert) is not model.bert.router
    stack_of(model.bert).router = None
    assert router_of(model.bert) is None


def test_refuses_layers_that_do_not_exist():
    with pytest.raises(EffptError, match=r"0\.\.3"):
        stack_of(tiny.model().bert).order = (0, 4)


def test_refuses_what_is_no_bert():
    with pytest.raises(EffptError, match="Linear"):
        stack_of(nn.Linear(2, 2))


def test_copied_layers_share_no_storage():
    stack = stack_of(tiny.model().bert)
    stack.copy_layer(0, 3)
    for ours, theirs in zip(stack[0].parameters(), stack[3].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


def test_parameter_names_stay_and_the_order_is_saved(tmp_path):
    model = tiny.model()
    names = list(model.state_dict())
    set_order(model.bert, [0, 2])
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert layers_of(again.bert).order == (0, 2)


def test_flatten_keeps_what_runs_in_the_order_it_runs():
    model = tiny.model().eval()
    set_order(model.bert, [3, 1])
    ids = torch.randint(5, tiny.VOCAB, (2, 6))
    before = model(ids).logits
    flatten(model.bert)
    assert type(model.bert.encoder.layer) is nn.ModuleList
    assert model.config.num_hidden_layers == 2
    assert torch.equal(model(ids).logits, before)


def test_the_first_layers_run_in_order_and_then_all_again():
    model = tiny.model().train()
    stack = stack_of(model.bert)
    stack.order, stack.dropped = (3, 0, 2), frozenset({3})
    with first_layers(model.bert, 1):
        assert list(stack) == [stack[0]]
        with first_layers(model.bert.eval(), 2):
            assert list(stack) == [stack[3], stack[0]]
        assert running(model.bert) == [stack[3]]
    with first_layers(model.bert, None):
        assert stack.active == (3, 0, 2)
    with first_layers(model.bert, 9):
        assert stack.active == (3, 0, 2)
    with pytest.raises(ValueError, match="within"), first_layers(model.bert, 1):
        raise ValueError("within")
    assert stack.active == (3, 0, 2)
    assert running(model.bert.train(), training=False) == [stack[3], stack[0], stack[2]]


def test_of_the_first_layers_the_last_is_the_one_that_computes_less():
    model = tiny.model().eval()
    stack, called = stack_of(model.bert), []
    stack.last = lambda layer, hidden, *args, **kwargs: called.append(layer) or layer(hidden, *args, **kwargs)
    with first_layers(model.bert, 2):
        model.bert(torch.randint(5, tiny.VOCAB, (2, 6)))
    assert called == [stack[1]]


def test_a_router_is_given_the_first_layers():
    model = tiny.model().eval()
    stack, given = stack_of(model.bert), []
    stack.router = lambda layers: given.append(list(layers)) or layers
    with first_layers(model.bert, 2):
        model.bert(torch.randint(5, tiny.VOCAB, (2, 6)))
    assert given == [[stack[0], stack[1]]]


@pytest.mark.parametrize("number", [0, -1])
def test_refuses_fewer_layers_than_one(number):
    with pytest.raises(EffptError, match=f"first {number} layers"), first_layers(tiny.model().bert, number):
        pass
