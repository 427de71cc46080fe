"""Ways to cut a text file into documents, and a guess of the one it was written for."""

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Literal, get_args

import numpy as np

from hf_effpt.data.long_documents import Part, document_parts

DocumentCut = Literal["blank_lines", "lines", "file"]
CUTS = get_args(DocumentCut)
# Characters to guess by, and lines without which there is nothing to see.
SAMPLE_CHARACTERS, SAMPLE_LINES = 2**20, 4
# Documents between blank lines have fewer lines than this on average, if lines are not wrapped.
STRAY = 500
ENDS = tuple(".?!:;\"')]\u2026\u00bb\u201d\u2019\u0964\u061f\u06d4\u3002\uff01\uff1f\u300d\uff09")  # of sentences


def cut_documents(strings: Iterable[str], cut: DocumentCut) -> Iterator[str]:
    """Yields the documents of a text file, long ones in parts.

    Args:
        strings (`Iterable[str]`): Lines with their ends; a long line in several strings, of which the last ends it.
        cut (`str`): `"blank_lines"`: a document is what stands between blank lines; `"lines"`: each line that is not
            blank is one; `"file"`: the whole file is one.
    """
    if cut == "file":
        yield from document_parts(strings)
        return
    for (blank, _), marked in groupby(_marked(strings, cut), itemgetter(0)):
        if not blank:
            for part in document_parts(string for _, string in marked):
                yield part if isinstance(part, Part) else part.rstrip()


def _marked(strings: Iterable[str], cut: DocumentCut) -> Iterator[tuple[tuple[bool, int], str]]:
    """Marks strings with the number of their document, and blank lines with `True`."""
    begins, number = True, 0
    for string in strings:
        yield (begins and string.isspace(), number), string
        begins = string.endswith("\n")
        number += begins and cut == "lines"


def guessed_cut(strings: Iterable[str]) -> DocumentCut:
    """The likely cut of a text file: blank lines if it has some, lines if they are not paragraphs wrapped at a margin.

    Blank lines that are fewer than one in 500 do not count. It looks at the first 1,048,576 characters; `strings` are
    those of `cut_documents`.
    """
    lines, size = [], 0
    for string in strings:
        lines.append(string)
        size += len(string)
        if size >= SAMPLE_CHARACTERS:
            break
    while lines and lines[-1].isspace():
        lines.pop()
    blank = sum(map(str.isspace, lines[1:]))
    if len(lines) < SAMPLE_LINES or blank * STRAY > len(lines):
        return "blank_lines"
    lines = [line.rstrip() for line in lines if not line.isspace()]
    if np.mean([line.endswith(ENDS) for line in lines]) >= 0.5:
        return "lines"
    margin = np.quantile([len(line) for line in lines], 0.99)
    # Of a wrapped paragraph, the first word of a line did not fit into the line before it.
    needed = [
        len(line) + (1 + line_after.find(" ") if " " in line_after else 1) for line, line_after in pairwise(lines)
    ]
    return "blank_lines" if np.mean(np.array(needed) > margin) >= 0.8 else "lines"
