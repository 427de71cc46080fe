"""`effpt methods`: lists the efficiency methods and their settings."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from typing import TYPE_CHECKING

from hf_effpt.core.settings import default_of, written

if TYPE_CHECKING:
    from hf_effpt.core.method import Method

HELP = "List the efficiency methods, or explain one and its settings."
EXAMPLE = "effpt methods layerdrop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the method to show; by default all are listed")


def run(args: argparse.Namespace) -> None:
    from hf_effpt.core.registry import METHODS, method_class

    if args.name is None:
        print("\n\n".join(summarize(METHODS[name]) for name in sorted(METHODS)))
    else:
        print(describe(method_class(args.name)))


def defaults(method: type[Method]) -> str:
    """Returns the settings with their defaults as a recipe writes them: `p: 0.2, after: null`."""
    return ", ".join(f"{field.name}: {written(default_of(field))}" for field in dataclasses.fields(method))


def summarize(method: type[Method]) -> str:
    """Describes a method in three lines: purpose, settings, paper."""
    paper = method.paper
    where = f" {paper.url}" if paper.url else ""
    return (
        f"{method.name}: {method.summary}\n"
        f"  settings  {{{defaults(method)}}}\n"
        f"  paper     {paper.title} ({paper.authors.split(', ')[0]} et al., {paper.year}){where}"
    )


def describe(method: type[Method]) -> str:
    """Describes a method in full: its summary, each of its settings, and how to switch it on."""
    lines = [summarize(method), "", inspect.getdoc(method) or "", ""]
    if method.conflicts:
        lines.append(f"Cannot run together with {', '.join(sorted(method.conflicts))}.\n")
    lines.append(f"In a recipe:          methods: {{{method.name}: {{{defaults(method)}}}}}")
    lines.append(f"On the command line:  --methods.{method.name} '{{{defaults(method)}}}'")
    return "\n".join(lines)
