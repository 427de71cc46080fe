"""`effpt settings`: lists the settings of a recipe, or explains one."""

import argparse
import textwrap
from typing import TYPE_CHECKING

from hf_effpt.core.settings import written

if TYPE_CHECKING:
    from hf_effpt.recipe.meanings import Meaning

HELP = "List the settings of a recipe, or explain one: type, default, meaning and source."
EXAMPLE = "effpt settings training.learning_rate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="SECTION[.KEY]",
        help="a section such as model or methods.layerdrop, or a setting in one; by default sections are listed",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    from hf_effpt.recipe.meanings import sections, setting, settings_in

    if args.name is None:
        for section in sections():
            print(f"{section:24} {len(settings_in(section)):4} settings   effpt settings {section}")
    elif args.name in sections():
        print("\n".join(_line(one) for one in settings_in(args.name)))
    elif "." in args.name.removeprefix("methods."):
        print(_whole(args.name, setting(args.name)))
    else:
        settings_in(args.name)  # which says what sections there are


def _line(one: "Meaning") -> str:
    """Key, default and the beginning of what it means, in one line."""
    return f"{one.key:32} {written(one.default):16} {textwrap.shorten(one.text, 90, placeholder=' …')}"


def _whole(name: str, one: "Meaning") -> str:
    section, _, key = name.rpartition(".")
    return "\n".join(
        [
            f"{name}: {one.kind}, by default {written(one.default)}",
            "",
            textwrap.fill(one.text, 100, break_on_hyphens=False, break_long_words=False),
            "",
            f"From {one.source}.",
            f"In a recipe: {section.replace('.', ': {')}: {{{key}: …}}{'}' * section.count('.')}   "
            f"On the command line: --{name} VALUE",
        ]
    )
