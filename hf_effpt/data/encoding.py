"""Tokenisation of many documents at once with a tokenizer's fast backend."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hf_effpt.data.vocabulary import text_backend

# Documents longer than this are cut, so that threads share the work and memory stays small.
CUT_CHARACTERS = 64 * 1024
_WORD_GAP = re.compile(r"(?<=\S) (?=\S)")


class TextEncoder:
    """Tokenises documents without special tokens.

    `dtype` is that of the id arrays; `num_proc` is 1 for one thread, by default every core.
    """

    def __init__(self, tokenizer, dtype: np.dtype, num_proc: int | None = None):
        self.backend, self.dtype, self.num_proc = text_backend(tokenizer), dtype, num_proc
        # Texts may be cut if a word's ids do not depend on its neighbours; some tokenizers mark where texts begin.
        self.cuts = self._ids("so be it") == self._ids("so") + self._ids(" be") + self._ids(" it")

    @property
    def fingerprint(self) -> str:
        """Hash of the backend, which decides the ids of a text."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, a 1-D array per text."""
        cuts = [self._cut(text) for text in texts]
        pieces = [piece for cut in cuts for piece in cut]
        with _threads(self.num_proc):
            encodings = self.backend.encode_batch_fast(pieces, add_special_tokens=False)
        encoded = iter([np.array(encoding.ids, self.dtype) for encoding in encodings])
        return [next(encoded) if len(cut) == 1 else np.concatenate([next(encoded) for _ in cut]) for cut in cuts]

    def _cut(self, text: str) -> list[str]:
        """Parts of a long text, each from one gap between words to another."""
        pieces, start = [], 0
        while self.cuts and len(text) - start > CUT_CHARACTERS:
            gap = _WORD_GAP.search(text, start + CUT_CHARACTERS)
            if gap is None:
                break
            pieces.append(text[start : gap.start()])
            start = gap.start()
        return [*pieces, text[start:]]

    def _ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids


@contextmanager
def _threads(num_proc: int | None) -> Iterator[None]:
    """Sets the threads of the tokenizers library, and restores the user's setting at the end of the block."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if num_proc is not None:
        os.environ[name] = "false" if num_proc == 1 else "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
