"""How a command shows what goes on: the package's own messages, plainly, on standard output."""

import logging
import sys


def show_messages() -> None:
    """Prints what the package logs from now on."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("hf_effpt").setLevel(logging.INFO)
