"""Sizes of documents, keys that equal ones share, and the check that they are text."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_effpt.core.errors import EffptError
from hf_effpt.data.long_documents import Part


class DocumentMeter:
    """Measures documents that are given part by part."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._bytes, self._hash = 0, hashlib.blake2b(digest_size=8)
        # Whether there were words, and white space after the last of them.
        self._words = self._ended = False

    def add(self, part: str) -> tuple[int, int] | None:
        """Takes the next part; returns the document's UTF-8 bytes and 64-bit key if the part ends it.

        Documents with the same words up to case, in the same order, have equal keys.
        """
        self._bytes += len(part.encode())
        if words := part.casefold().split():
            # A part may end within a word, where text has no spaces to cut it at.
            begins = self._words and (self._ended or part[0].isspace())
            self._hash.update(f"{' ' if begins else ''}{' '.join(words)}".encode())
            self._words, self._ended = True, part[-1].isspace()
        else:
            self._ended = self._ended or bool(part)
        if isinstance(part, Part):
            return None
        if self._words:
            self._hash.update(b" ")
        found = self._bytes, int.from_bytes(self._hash.digest(), "little")
        self._start()
        return found


def content_keys(texts: Iterable[str]) -> np.ndarray:
    """Keys of documents, or of documents in parts, as of [`DocumentMeter`]; uint64 of shape `(documents,)`."""
    meter = DocumentMeter()
    return np.fromiter((found[1] for text in texts if (found := meter.add(text))), np.uint64)


def document_sizes(texts: Iterable[str]) -> np.ndarray:
    """UTF-8 bytes of documents, or of documents in parts; int64 of shape `(documents,)`."""
    meter = DocumentMeter()
    return np.fromiter((found[0] for text in texts if (found := meter.add(text))), np.int64)


def hash_of_texts(texts: Iterable[str], name: str) -> str:
    """Hash of documents and their order; raises an `EffptError` for what is no text in the source `name`."""
    total = hashlib.sha256()
    for number, text in enumerate(texts, start=1):
        check_text(text, f"{name}, document {number:,}")
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:32]


def check_text(text: Any, where: str) -> None:
    """Raises an `EffptError` for what is no string, or has half of a surrogate pair, which no tokenizer accepts."""
    if not isinstance(text, str):
        raise EffptError(f"{where}: this is a {type(text).__name__}, but documents must be strings.")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise EffptError(
            f"{where}: character {error.start:,} is half of a surrogate pair (U+{ord(text[error.start]):04X}), which "
            "no tokenizer accepts. Replace it, as "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') does."
        ) from error
