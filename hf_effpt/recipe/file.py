"""Finds recipe files and reads their YAML strictly: errors name their line, and a duplicate key is an error."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from hf_effpt.core.errors import EffptError

BUILT_IN = Path(__file__).parents[1] / "recipes"


class _Loader(yaml.SafeLoader):
    """Loads YAML in which `5e-4` is a number, as in YAML 1.2, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            named = isinstance(key, str | int | float) and not isinstance(key, bool)  # numbers are those of schedules
            fault = "is not a name" if not named else "is given twice" if key in seen else None
            if fault:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} {fault}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Parses a YAML text; raises `EffptError` with `source`, line and column if it is none, or has a duplicate key."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: looks like a date, but is none
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise EffptError(f"{source}{where}: {getattr(error, 'problem', error)}. Correct the YAML there.") from None


def find_recipe(source: str | Path) -> Path:
    """Returns the path of a recipe file, given that path or a built-in name; raises `EffptError` if there is none."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise EffptError(f"{path} is a folder; pass a recipe file, such as {path / 'recipe.yaml'}.")
    names = sorted(file.stem for file in BUILT_IN.glob("*.yaml"))
    if str(source) in names:
        return BUILT_IN / f"{source}.yaml"
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean the built-in `{close[0]}`?" if close else f"built-in recipes are {', '.join(names)}."
    raise EffptError(f"There is no recipe file {path}; {hint}")


def read_recipe_file(source: str | Path) -> Any:
    """Reads a recipe file, or a built-in recipe by its name; raises `EffptError` if there is none in UTF-8 YAML."""
    path = find_recipe(source)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EffptError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8.") from None
    return parse_yaml(text, str(path))
