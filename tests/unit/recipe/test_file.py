"""Recipe files: mistakes are found with their line, and a recipe is found by path or name."""

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.file import find_recipe, parse_yaml, read_recipe_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E6", 1e6),
        ("-.5e+2", -50.0),
        ("3", 3),
        ("0.1", 0.1),
        ("10min", "10min"),
        ("1e9tokens", "1e9tokens"),
        ("'5e-4'", "5e-4"),
        ("null", None),
        ("yes", True),
    ],
)
def test_plain_values(text, value):
    read = parse_yaml(f"key: {text}", "here")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {size: tiny\ndata: x\n", "here, line 2, column 5: "),
        ("model: {}\ndata:\n  split: a\n  split: b\n", "here, line 4, column 3: the key 'split' is given twice"),
        ("model: {}\ntrue: {}\n", "here, line 2, column 1: the key True is not a name"),
        ("model: 2026-13-01", "here: month must be in"),
        ("model: \x00", "here: .*special characters"),
        ("model: !!python/object:os.system {}", "here, line 1, column 8: could not determine a constructor"),
    ],
)
def test_bad_yaml_is_reported_with_its_place(text, message):
    with pytest.raises(EffptError, match=message):
        parse_yaml(text, "here")


def test_file_that_is_not_utf8_is_reported_with_the_byte(tmp_path):
    (tmp_path / "a.yaml").write_bytes("model: {size: ü}".encode("latin-1"))
    with pytest.raises(EffptError, match=r"a\.yaml is not UTF-8 at byte 14"):
        read_recipe_file(tmp_path / "a.yaml")


def test_file_goes_before_a_built_in_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("tiny").is_absolute()
    (tmp_path / "tiny").write_text("model: {}")
    assert read_recipe_file("tiny") == {"model": {}}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tinny", "no recipe file tinny; did you mean the built-in `tiny`"),
        ("my/tinny.yaml", "no recipe file my/tinny.yaml; did you mean the built-in `tiny`"),
        ("zzz", "built-in recipes are .*tiny"),
        (".", r"\. is a folder; pass a recipe file, such as recipe.yaml"),
    ],
)
def test_missing_recipe_names_what_there_is(source, message):
    with pytest.raises(EffptError, match=message):
        find_recipe(source)
