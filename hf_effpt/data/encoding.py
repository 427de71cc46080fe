"""Tokenising many documents at once with the tokenizer's fast backend."""

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
    """
    Turns documents into arrays of token ids, without special tokens.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): The tokenizer.
        dtype (`np.dtype`): Of the arrays.
        num_proc (`int`, *optional*): 1 for one thread, by default every core.
    """

    def __init__(self, tokenizer, dtype: np.dtype, num_proc: int | None = None):
        self.backend = text_backend(tokenizer)
        self.dtype = dtype
        self.num_proc = num_proc
        # Cutting is harmless if words do not see their neighbours; a tokenizer that marks text beginnings does.
        self.cuts = self._ids("so be it") == self._ids("so") + self._ids(" be") + self._ids(" it")

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which ids a text gets."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The token ids of each text."""
        pieces: list[str] = []
        counts = []
        for text in texts:
            cut = self._cut(text)
            pieces += cut
            counts.append(len(cut))
        with _threads(self.num_proc):
            encodings = self.backend.encode_batch_fast(pieces, add_special_tokens=False)
        encoded = iter([np.array(encoding.ids, self.dtype) for encoding in encodings])
        return [
            next(encoded) if count == 1 else np.concatenate([next(encoded) for _ in range(count)]) for count in counts
        ]

    def _cut(self, text: str) -> list[str]:
        pieces = []
        start = 0
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
    """Sets whether the tokenizers library uses its threads, and puts the user's own setting back."""
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
