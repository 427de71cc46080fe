"""Models, batches and tickets for what is said of narrower layers."""

import torch

from hf_effpt.core.anatomy import attention_of, feed_forward_of, layers_of
from hf_effpt.core.ticket import Ticket
from tests import tiny

PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Of four heads and 16 neurons: uneven, and one layer without heads.
HEADS = ((0, 2), (), (1,), (0, 1, 2, 3))
NEURONS = ((0, 5, 6), (15,), tuple(range(16)), (1, 2, 3, 8))
TICKET = Ticket(HEADS, NEURONS, ((4, 16),) * 4)


def wide(attention="sdpa", seed=3, **settings):
    """A model whose biases and LayerNorms are not those of a new one."""
    torch.manual_seed(seed)
    model = tiny.model(num_attention_heads=4, intermediate_size=16, **PLAIN, **settings)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def padded(rows=4, length=10):
    ids = torch.randint(5, tiny.VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(length) < torch.arange(length - rows + 1, length + 1)[:, None]).long()
    labels = torch.where((torch.arange(length) % 3 == 1) & mask.bool(), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def mask(model, ticket=TICKET):
    """Silences what a ticket does not keep, by zeros in the projections that mix heads and neurons."""
    for index, layer in enumerate(layers_of(model.backbone).children()):
        attention, block = attention_of(layer), feed_forward_of(layer)
        for linear, kept in ((attention.output, ticket.heads[index]), (block.down, ticket.neurons[index])):
            size = attention.head_size if linear is attention.output else 1
            gone = torch.ones(linear.in_features // size, dtype=torch.bool)
            gone[list(kept)] = False
            linear.weight[:, gone.repeat_interleave(size)] = 0.0
    return model
