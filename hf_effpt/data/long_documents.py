"""Parts of long documents: read, tokenised and measured one at a time, so memory does not grow with a document.

A pass over a corpus yields strings. A `Part` goes on in the string after it; any other string ends its document.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

# Documents of twice as many characters are cut, at the first gap after so many.
PART_CHARACTERS = 64 * 1024
# Places to cut at, best ones first. Between two words with one space, most tokenizers give the same tokens as uncut.
_GAPS = tuple(
    map(
        re.compile,
        (
            r"(?<=\S) (?=\S)",
            r"(?<=\S)(?=\s)",
            r"(?<=[.,;:!?\u0964\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f])(?=\S)",
        ),
    )
)


class Part(str):
    """Part of a document that goes on in the next string of the pass."""

    __slots__ = ()


def document_parts(strings: Iterable[str]) -> Iterator[str]:
    """Yields the parts of one document, whose text comes as strings that follow one another.

    A part ends before a space between words if there is one within 65,536 characters after as many; else before other
    white space, after punctuation, or anywhere.
    """
    held: list[str] = []
    size = 0
    for string in strings:
        held.append(string)
        size += len(string)
        if size < 2 * PART_CHARACTERS:
            continue
        text, start = "".join(held), 0
        while len(text) - start >= 2 * PART_CHARACTERS:
            end = _gap(text, start + PART_CHARACTERS, start + 2 * PART_CHARACTERS)
            yield Part(text[start:end])
            start = end
        held, size = [text[start:]], len(text) - start
    yield "".join(held)


def in_parts(texts: Iterable[str]) -> Iterator[str]:
    """Cuts the long documents of a pass, which may be in parts already."""
    for text in texts:
        if isinstance(text, Part) or len(text) < 2 * PART_CHARACTERS:
            yield text
        else:
            yield from document_parts([text])


def joined(texts: Iterable[str]) -> Iterator[str]:
    """Joins the parts of a pass: yields whole documents."""
    held: list[str] = []
    for text in texts:
        held.append(text)
        if not isinstance(text, Part):
            yield text if len(held) == 1 else "".join(held)
            held = []


def chosen_of(parts: Iterable[str], chosen_N: Iterable[bool]) -> Iterator[str]:
    """Yields the parts of the documents for which `chosen_N` is `True`."""
    chosen, here, begins = iter(chosen_N), False, True
    for part in parts:
        if begins:
            here = next(chosen)
        if here:
            yield part
        begins = not isinstance(part, Part)


def beginnings(parts: Iterable[str], characters: int) -> Iterator[str]:
    """Yields the first characters of each document of a pass."""
    held = ""
    for part in parts:
        if len(held) < characters:
            held += part[: characters - len(held)]
        if not isinstance(part, Part):
            yield held
            held = ""


def _gap(text: str, first: int, last: int) -> int:
    """The best place to cut a text between two positions; `last` if there is no gap, unless marks combine there."""
    for gap in _GAPS:
        if found := gap.search(text, first, last):
            return found.start()
    while last > first and last < len(text) and unicodedata.combining(text[last]):
        last -= 1
    return last
