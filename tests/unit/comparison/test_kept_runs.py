import json
import runpy
from pathlib import Path

import pytest

from hf_effpt.recipe.recipe import Recipe

is_kept = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "kept_runs.py"))["is_kept"]


def recipe(out, *flags):
    return Recipe.load("tiny", ["--training.output_dir", str(out), *flags])


def test_a_finished_run_is_kept_if_its_settings_are_those_asked_for(tmp_path):
    folder = tmp_path / "seed-0.5" / "plain"
    assert not is_kept(folder, recipe(folder))
    folder.mkdir()
    recipe(folder, "--data.num_proc", "2").save(folder / "recipe.yaml")  # a run that was killed counts for nothing
    assert not is_kept(folder, recipe(folder, "--training.learning_rate", "1e-4"))
    (folder / "run.json").write_text(json.dumps({"recipe": recipe(folder, "--data.num_proc", "2").resolved()}))
    assert is_kept(folder, recipe("moved/plain"))
    with pytest.raises(
        SystemExit, match=r"other settings \(methods.layerdrop, training.learning_rate\); name another"
    ):
        is_kept(folder, recipe(folder, "--training.learning_rate", "1e-4", "--methods.layerdrop.p", "0.1"))
