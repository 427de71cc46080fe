"""What a ticket keeps: exactly so many heads and neurons, in widths that are multiples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_effpt.core.errors import EffptError
from hf_effpt.core.ticket import Ticket, draw, draw_widths, round_widths, unit_of


def tied(layers, size):
    return [torch.ones(size) for _ in range(layers)]


def test_ties_keep_exactly_so_many_and_the_first():
    """`c > quantile` would keep none of them."""
    ticket = draw(tied(12, 12), tied(12, 3072), 8, round(0.6 * 12 * 3072))
    assert ticket.heads == (tuple(range(8)),) * 12
    assert sum(len(layer) for layer in ticket.neurons) == 64 * round(0.6 * 12 * 3072 / 64)
    assert all(layer == tuple(range(len(layer))) for layer in ticket.neurons)


def test_heads_are_ranked_in_their_layer_and_neurons_over_all():
    heads = [torch.tensor([0.1, 0.3, 0.2]), torch.tensor([9.0, 7.0, 8.0])]
    neurons = [torch.arange(20.0), 100 + torch.arange(20.0)]
    ticket = draw(heads, neurons, 2, 25)  # 20 is no multiple of 8, so widths are not rounded
    assert ticket.heads == ((1, 2), (0, 2))
    assert ticket.neurons == (tuple(range(15, 20)), tuple(range(20)))
    assert ticket.widths == [[2, 5], [2, 20]]


def test_no_layer_is_emptied():
    neurons = [torch.zeros(1024), torch.ones(1024)]
    assert draw(tied(2, 4), neurons, 1, 1024).widths == [[1, 64], [1, 960]]


@given(st.lists(st.integers(0, 16), min_size=1, max_size=6), st.sampled_from([(16, 8), (1024, 64), (20, 1)]))
def test_rounding_keeps_the_total(sixteenths, sizes):
    size, unit = sizes
    assert unit_of(size) == unit
    wanted = [share * size // 16 + (share % 3) * (share < 15) for share in sixteenths]
    kept = round_widths(wanted, [size] * len(wanted))
    assert all(number % unit == 0 and unit <= number <= size for number in kept)
    assert sum(kept) == unit * max(len(wanted), min(len(wanted) * size // unit, round(sum(wanted) / unit)))


def test_widths_may_be_given():
    scores = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])]
    ticket = draw_widths(scores, scores, [[1, 2], [3, 1]])
    assert ticket.heads == ((0,), (0, 1, 2))
    assert ticket.neurons == ((0, 2), (2,))
    assert ticket.shape == ((3, 3), (3, 3))


def test_saved_and_read(tmp_path):
    ticket = Ticket(((0, 2),), ((1,),), ((3, 4),), {"ticket": "random"})
    assert Ticket.load(ticket.save(tmp_path / "ticket.json")) == ticket
    (tmp_path / "other.json").write_text('{"heads": [[1]]}')
    for name in ("none.json", "other.json"):
        with pytest.raises(EffptError, match=f"{name} holds no ticket"):
            Ticket.load(tmp_path / name)


def test_a_ticket_of_other_layers_is_refused():
    ticket = Ticket(((0, 2),), ((1,),), ((3, 4),))
    ticket.check([[3, 4]])
    Ticket(((),), ((1,),), ((3, 4),)).check([[3, 4]])  # a layer may do without heads
    with pytest.raises(EffptError, match="1 times 3 heads and 4 neurons, and the model has 2 times 3 heads"):
        ticket.check([[3, 4], [3, 4]])


@pytest.mark.parametrize(
    ("heads", "neurons"),
    [
        (((0, 3),), ((1,),)),  # there is no head 3
        (((0, 0),), ((1,),)),
        (((2, 0),), ((1,),)),
        (((0,),), ((),)),  # no layer does without neurons
        (((0,),), ((-1,),)),
        (((0,), (1,)), ((1,),)),  # of two layers
    ],
)
def test_tickets_that_name_what_is_not_there_are_refused(heads, neurons):
    with pytest.raises(EffptError, match="it has to name different ones that are there, rising, and at least"):
        Ticket(heads, neurons, ((3, 4),)).check([[3, 4]])
