"""Models with gates that are as open as a test wants them."""

import torch

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from tests import tiny

PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OPEN, HALF, SHUT = 100.0, 0.0, -100.0  # logits


def gated(logit=None, layers=4, step=3, **settings):
    """A model in training, past the start of its gates, all of which have this logit whatever they read."""
    torch.manual_seed(4)
    model = tiny.model({"layerskip": settings}, num_hidden_layers=layers, **PLAIN).train()
    started(model, step)
    if logit is not None:
        lean(model, logit)
    return model


def started(model, step=3):
    for method in model.methods:
        method.schedule(model.backbone, RunContext(step, 0.9, seed=7))


def lean(model, logit):
    with torch.no_grad():
        model.backbone.gates.out.weight.zero_()
        model.backbone.gates.out.bias.fill_(logit)


def spread(model):
    """Has gates depend on what they read, so that rows differ."""
    with torch.no_grad():
        model.backbone.gates.narrow.weight.mul_(20)
        model.backbone.gates.out.weight.mul_(20)
        model.backbone.gates.out.bias.zero_()


def plain_like(model, layers=4):
    """The same weights without methods."""
    plain = tiny.model(num_hidden_layers=layers, **PLAIN).train()
    plain.load_state_dict(model.state_dict(), strict=False)
    return plain


def ragged(rows=8, length=12):
    """A batch whose rows have different lengths, with labels at some of their tokens."""
    ids = torch.randint(5, tiny.VOCAB, (rows, length), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length) < torch.arange(length - rows + 1, length + 1)[:, None]).long()
    ids = torch.where(mask.bool(), ids, 0)
    labels = torch.where(torch.arange(length) % 3 == 1, ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), labels, -100)}


def ran(model, **inputs):
    """Layers that a forward calls, and numbers of rows; without labels, so that the last is called as a whole."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _, args, __, index=int(index): seen.append((index, len(args[0]))))
        for index, layer in stack_of(model.backbone)._modules.items()
    ]
    model(**{name: value for name, value in inputs.items() if name != "labels"})
    for hook in hooks:
        hook.remove()
    return seen


def decisions(model):
    """Which rows ran at each gated position in the last forward, of shape `(positions, batch_size)`."""
    return torch.stack(model.backbone.gates._pass.open)
