"""A model with methods that another loop trains warns once."""

import logging

import pytest
import torch

from tests import tiny

METHODS = {"layerdrop": {"p": 0.2}}


def warnings_of(caplog, model, times=2):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_effpt"):
        for _ in range(times):
            model(**tiny.batch(2, objective="mlm"))
    return [record.getMessage() for record in caplog.records if "EffptTrainer" in record.getMessage()]


def test_another_loop_warns_once(caplog):
    model = tiny.model(METHODS)
    with torch.no_grad():
        assert not warnings_of(caplog, model)
    assert not warnings_of(caplog, model.eval())
    (message,) = warnings_of(caplog, model.train())
    assert message.startswith("The methods of this model (layerdrop) are run by `EffptTrainer`")
    assert not warnings_of(caplog, tiny.model())


@pytest.mark.parametrize("added", [False, True])
def test_the_trainer_of_this_package_does_not(tmp_path, caplog, added):
    model = tiny.model(None if added else METHODS)
    if added:
        model.add_method("layerdrop", p=0.2)
    tiny.EffptTrainer(model, tiny.arguments(tmp_path), train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
    assert not warnings_of(caplog, model)
