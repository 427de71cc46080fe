"""The stock model as the measure: a method that is off, or has not begun, changes no bit of a training step."""

from typing import Any

import torch

from hf_effpt.core.context import RunContext
from tests import tiny


def assert_learns_as_stock(
    methods: dict[str, Any] | None, own: str | None = None, until: float = 0.3, backbone: str = "bert"
) -> tuple[Any, Any]:
    """The stock model and ours after three equal steps with dropout.

    Args:
        methods (`dict`, *optional*): the ledger of ours.
        own (`str`, *optional*): what the names of parameters have that the stock model does not.
        until (`float`): the fraction of the clock at the end of the steps.
        backbone (`str`): `bert` or `modernbert`.
    """
    built = tiny.masked_lm(backbone, methods, 0.1)
    stock_class, config = type(built).stock_class, tiny.masked_lm(backbone, None, 0.1).config.stock()
    stock, expected, generator = _three_steps(stock_class(_seeded(config)), own, until)
    ours = type(built)(_seeded(built.config))
    ours, seen, our_generator = _three_steps(ours, own, until)
    assert all(torch.equal(left, right) for left, right in zip(expected, seen, strict=True))
    assert torch.equal(generator, our_generator)
    weights = ours.state_dict()
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    return stock, ours


def _seeded(config: Any) -> Any:
    torch.manual_seed(11)
    return config


def _three_steps(model: Any, own: str | None, until: float) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
    """The model, its losses, logits and gradients, and the state of the generator."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    methods, seen = getattr(model, "methods", []), []
    for step in range(3):
        ids = torch.randint(5, tiny.VOCAB, (4, tiny.LENGTH), generator=torch.Generator().manual_seed(step))
        for method in methods:
            method.schedule(model.backbone, RunContext(step, step * until / 3, seed=0))
        logits = model(ids).logits
        assert all(method.penalty(model.backbone) is None for method in methods)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
        loss.backward()
        seen += [loss.detach(), logits.detach()]
        seen += [p.grad.clone() for name, p in model.named_parameters() if own is None or own not in name]
        optimizer.step()
        optimizer.zero_grad()
        for method in methods:
            assert not method.advance(model.backbone, RunContext(step + 1, (step + 1) * until / 3))
    return model, seen, torch.get_rng_state()
