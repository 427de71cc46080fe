"""Progress of a command: the package's log messages, as plain lines on standard output."""

import logging
import sys


def show_messages() -> None:
    """Prints the package's log messages from now on."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("hf_effpt").setLevel(logging.INFO)
