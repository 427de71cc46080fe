"""A look at a model in training leaves no trace."""

import pytest
import torch

from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.modes import aside, evaluating
from tests import tiny


@pytest.mark.parametrize("fails", [False, True])
def test_modes_random_numbers_and_tally_are_what_they_were(fails):
    model = tiny.joint(methods={"layerdrop": {"p": 0.3}}, hidden_dropout_prob=0.1).train()
    model.generator.eval()
    backbone, batch = model.electra, tiny.batch()
    model(**batch)
    sums = {name: float(value) for name, value in accumulator_of(backbone).sums.items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert sums
    assert len(set(modes)) == 2
    try:
        with aside(backbone), evaluating(model):
            assert not any(module.training for module in model.modules())
            model(**batch)
            torch.rand(3)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: float(value) for name, value in accumulator_of(backbone).sums.items()} == sums
    model(**batch)
    assert {name: float(value) for name, value in accumulator_of(backbone).sums.items()} != sums
