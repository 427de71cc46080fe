"""Docstrings of Python source files, parsed without running them, and the English prose in them."""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

# Docstrings with fewer characters of prose are dropped.
MIN_CHARACTERS = 200
# Paragraphs with a smaller share of ASCII letters and spaces are code, tables or formulas.
MIN_LETTERS = 0.7
ENGLISH = frozenset("a an and are as be by for from if in is it not of on or that the this to which will with".split())
# In English, at least this share of the words are among those above; identifiers and other languages have fewer.
MIN_ENGLISH = 0.15

_NOT_LETTERS = re.compile(r"[^A-Za-z\s]")
_WORD = re.compile(r"[a-z]+")


def module_docstrings(path: Path) -> list[str]:
    """Long docstrings of a module, its classes and methods, and its functions, in the order of the source."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            # Invalid escape sequences and the like are the packages' own affair.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Templates, Python 2 and files made to break parsers are found among installed packages.
        return []
    return [inspect.cleandoc(text) for text in _docstrings(tree)]


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node, clean=False)
    if text and len(text) >= MIN_CHARACTERS:
        yield text
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child)


class Prose:
    """Filter that keeps the paragraphs of English prose that it has not seen before."""

    def __init__(self):
        self._seen: set[int] = set()

    def clean(self, text: str) -> str | None:
        """Prose of one docstring, or `None` if too little is left."""
        # Lone surrogates can be written in Python source, but not in UTF-8.
        text = text.encode("utf-8", "ignore").decode("utf-8")
        kept = [paragraph for paragraph in re.split(r"\n\s*\n", text) if self._wanted(paragraph)]
        cleaned = "\n\n".join(kept)
        return cleaned if len(cleaned) >= MIN_CHARACTERS and is_english(cleaned) else None

    def _wanted(self, paragraph: str) -> bool:
        letters = _NOT_LETTERS.sub("", paragraph)
        if ">>>" in paragraph or len(letters) < MIN_LETTERS * len(paragraph):
            return False
        # Only words count, so that re-wrapped copies and those with other numbers are recognised.
        key = hash(tuple(letters.lower().split()))
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def is_english(text: str) -> bool:
    """`True` for running English text, by its commonest words."""
    words = _WORD.findall(text.lower())
    return sum(word in ENGLISH for word in words) >= MIN_ENGLISH * len(words)
