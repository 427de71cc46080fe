"""`effpt settings`: every setting of every section has a type, a default and a meaning."""

import pytest

from hf_effpt.cli.main import main
from hf_effpt.recipe.meanings import sections, setting, settings_in


@pytest.mark.parametrize("section", sections())
def test_every_setting_is_explained(section):
    found = settings_in(section)
    assert len({one.key for one in found}) == len(found) > 5
    for one in found:
        assert one.kind, one
        assert "[`" not in one.text, one
        assert "object at" not in str(one.default), one
        if not one.stock:  # stock arguments have what Transformers says, which of a few is nothing
            assert len(one.text) > 10, one


@pytest.mark.parametrize(
    ("name", "kind", "default", "text", "source"),
    [
        ("model.from", "str", None, "folder or Hub id of a stock checkpoint", "`ModelSettings`"),
        ("model.hidden_size", "int", None, "each overrides that of `size`", "`ModelSettings`"),
        ("data.dataset", "str or list", "(required)", "a folder or file of", "`DataSettings`"),
        ("training.budget", "str", None, "limit of the run", "`EffptTrainingArguments`"),
        (
            "training.warmup_steps",
            "int or float",
            0.06,
            "below 1 a share of the budget",
            "`transformers.TrainingArguments`",
        ),
        ("training.fsdp", "bool", None, "Fully Sharded", "`transformers.TrainingArguments`"),
        ("methods.layerdrop.heads", "float", 0.0, "dropping an attention head", "Reducing Transformer Depth"),
    ],
)
def test_a_setting(name, kind, default, text, source):
    found = setting(name)
    assert (found.kind, found.default) == (kind, default)
    assert text in found.text
    assert source in found.source


def test_what_the_command_says(capsys):
    assert main(["settings"]) == 0
    assert "effpt settings methods.tnf" in capsys.readouterr().out
    assert main(["settings", "data"]) == 0
    assert "\nmlm_probability                  0.15             share of a row's tokens" in capsys.readouterr().out
    assert main(["settings", "methods.layerdrop.p"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("methods.layerdrop.p: float, by default null\n")
    assert "In a recipe: methods: {layerdrop: {p: …}}   On the command line: --methods.layerdrop.p VALUE" in said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("modle", "did you mean `model`"),
        ("methods.layerdorp", "did you mean `methods.layerdrop`"),
        ("data.mlm_probabilty", "did you mean `mlm_probability`"),
    ],
)
def test_a_name_that_there_is_not(capsys, name, says):
    assert main(["settings", name]) == 2
    assert says in capsys.readouterr().err
