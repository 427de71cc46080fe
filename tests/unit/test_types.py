"""Type checkers see the public names, their keywords and their fields."""

import ast
import tomllib
from pathlib import Path

import pytest

import hf_effpt
from hf_effpt.models import families, kin
from hf_effpt.training import named

ROOT = Path(__file__).parents[2]


def test_code_of_users_and_every_public_name_are_checked_with_the_package():
    """The type checker's run over the package accepts `right.py`, and reports each line of `wrong.py`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    assert {"hf_effpt/__init__.py", "tests/types"} <= set(settings["include"])
    lines = (ROOT / "tests" / "types" / "wrong.py").read_text().splitlines()
    assert "# pyright: reportUnnecessaryTypeIgnoreComment=error" in lines
    assert sum("# pyright: ignore[report" in line for line in lines) == 9


@pytest.mark.parametrize("module", [families, kin, named])
def test_a_stub_lists_the_classes_that_are_made(module):
    made = {
        name: cls.__base__.__name__
        for name, cls in vars(module).items()
        if isinstance(cls, type) and cls.__module__ == module.__name__
    }
    stub = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text())
    listed = {node.name: node.bases[0].id for node in ast.walk(stub) if isinstance(node, ast.ClassDef)}
    assert listed == made
    assert set(listed) <= set(hf_effpt.__all__)
    for name in listed:
        cls = getattr(hf_effpt, name)
        assert cls is getattr(module, name)
        assert (cls.__name__, cls.__qualname__) == (name, name)
        assert cls.__doc__ != cls.__base__.__doc__
