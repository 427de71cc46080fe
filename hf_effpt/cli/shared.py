"""Functions of several subcommands: parsing of lists, and log messages as plain lines."""

import logging
import sys

from hf_effpt.core.errors import EffptError


def show_messages() -> None:
    """Prints the package's log messages on standard output from now on."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("hf_effpt").setLevel(logging.INFO)


def words(text: str) -> list[str]:
    """Splits a list such as `blimp,cola`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(flag: str, text: str) -> list[float]:
    """Parses a list of numbers such as `0.5,1`; anything else in it is an `EffptError`."""
    try:
        return [float(word) for word in words(text)]
    except ValueError as error:
        raise EffptError(f"`{flag}` is {text!r}, but must be numbers such as 0.5,0.7,1.") from error
