"""A finding of a check, and the diagnosis that it is part of."""

import textwrap
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning"]
WIDTH = 100  # characters of a line


@dataclass(frozen=True)
class Finding:
    """A fault that a check has found.

    Args:
        check (`str`): name of the check, as `leakage`.
        severity (`str`): `error` if the result is spoilt, `warning` if it is worse or dearer than it could be.
        seen (`str`): what was seen, with its figures.
        why (`str`): why it matters, in a sentence.
        fix (`str`): the command or setting that mends it.
    """

    check: str
    severity: Severity
    seen: str
    why: str
    fix: str

    def text(self) -> str:
        """The finding in a few aligned lines."""
        rows = (("seen", self.seen), ("why", self.why), ("mend", self.fix))
        return "\n".join([f"{self.severity}: {self.check}", *(row(*one) for one in rows)])


@dataclass(frozen=True)
class Diagnosis:
    """Findings on a `target`, the worst first, with the `figures` that were looked at by their names."""

    target: str
    kind: str
    figures: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """`True` unless a finding is an error."""
        return all(one.severity != "error" for one in self.findings)

    def text(self) -> str:
        """The whole diagnosis, as the command prints it."""
        shown = [f"{self.kind} {self.target}", *(row(name, value) for name, value in self.figures.items())]
        parts = [one.text() for one in self.findings] or ["nothing found"]
        return "\n\n".join(["\n".join(shown), *parts])


def row(name: str, text: str) -> str:
    """A name and what is said of it, broken into lines under each other; a command stays in one line."""
    indent = 2 + 14
    if text.startswith("effpt "):
        return f"  {name:14}{text}"
    return textwrap.fill(
        text, WIDTH, initial_indent=f"  {name:14}", subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
