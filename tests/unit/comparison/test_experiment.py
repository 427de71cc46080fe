"""What a comparison checks before its first run."""

import pytest

from hf_effpt.comparison import experiment
from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.recipe import Recipe
from tests import tiny


def recipe(tmp_path, batch, methods=None):
    return Recipe.load(
        {
            "model": {"size": "tiny"},
            "data": {"dataset": str(tmp_path)},
            "methods": methods or {},
            "training": {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": batch, "use_cpu": True},
        }
    )


@pytest.mark.parametrize(
    ("batch", "methods", "told"),
    [
        (64, None, "Arm `other`: The training data are 48 rows, too few for one step of 64"),
        (
            8,
            {"selection": {"strategy": "random", "keep": 0.125}},
            "Arm `other`: `selection` looks at 64 rows in a step",
        ),
    ],
    ids=["step", "window"],
)
def test_a_step_that_the_data_cannot_fill_is_refused_before_any_run(tmp_path, monkeypatch, batch, methods, told):
    rows = {"train": tiny.rows(48), "validation": tiny.rows(4)}
    monkeypatch.setattr(experiment, "prepare_data", lambda recipe: (None, None, rows))
    good = recipe(tmp_path, 48)
    experiment._prepare({"plain": good})
    with pytest.raises(EffptError, match=told):
        experiment._prepare({"plain": good, "other": recipe(tmp_path, batch, methods)})


def test_arms_of_sizes_with_different_protocols_are_refused(tmp_path):
    small, large = recipe(tmp_path, 8), recipe(tmp_path, 8)
    large.model.hidden_size = 1024
    assert experiment._common_protocol("glue8_electra", {"a": small, "b": small}) == "glue8_electra_small"
    assert experiment._common_protocol("glue8_electra_base", {"a": small, "b": large}) == "glue8_electra_base"
    with pytest.raises(EffptError, match="`glue8_electra_small` for arm `a`, `glue8_electra_large` for arm `b`"):
        experiment._common_protocol("glue8_electra", {"a": small, "b": large})


def test_a_comparison_never_writes_into_its_text(tmp_path):
    sections = recipe(tmp_path, 8).resolved()
    with pytest.raises(EffptError, match="whose files are read as text"):
        experiment.compare([{"name": "a", **sections}], tmp_path / "report", budget="4steps", seeds=1)
