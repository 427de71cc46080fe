"""Publications that methods implement."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """Publication of a method."""

    title: str
    authors: str
    year: int
    bibtex: str
    arxiv: str | None = None

    @classmethod
    def of(cls, bibtex: str, arxiv: str | None = None) -> "Paper":
        """Reads title, authors and year from a BibTeX entry, `@misc{key, title={…}, author={…}, year={…}}`."""
        values = dict(re.findall(r"(\w+)=\{((?:[^{}]|\{[^{}]*\})*)\}", bibtex))
        authors = ", ".join(" ".join(reversed(name.split(", "))) for name in values["author"].split(" and "))
        title = re.sub(r"[{}\\]", "", values["title"])
        return cls(title, authors.replace(", others", ", and others"), int(values["year"]), bibtex, arxiv)

    @property
    def url(self) -> str | None:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None
