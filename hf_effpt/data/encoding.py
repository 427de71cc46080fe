"""Tokenisation of many documents at once with a tokenizer's fast backend."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from hf_effpt.data.long_documents import Part, in_parts
from hf_effpt.data.vocabulary import text_backend

# Groups of texts for each thread, since some take longer.
SHARES = 4


class TextEncoder:
    """Tokenises documents without special tokens.

    Long documents are tokenised in parts, so that threads share the work and memory stays small. Their tokens are
    those of the whole document if a word's tokens do not depend on its neighbours, as in WordPiece, byte-level BPE and
    SentencePiece, and if there are spaces to cut at; else a word at a cut may be split otherwise.

    `dtype` is that of the id arrays; `num_proc` is the number of threads, by default one for every core.
    """

    def __init__(self, tokenizer, dtype: np.dtype, num_proc: int | None = None):
        self.backend, self.dtype, self.num_proc = text_backend(tokenizer), dtype, num_proc
        # Some tokenizers mark where texts begin, as others mark a space: for them the space at a cut is left out.
        kept = self._ids("so") + self._ids(" be") + self._ids(" it")
        self.omits_gap = self._ids("so be it") not in (kept, []) and self._ids("so be it") == (
            self._ids("so") + self._ids("be") + self._ids("it")
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the backend, which decides the ids of a text."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, a 1-D array per text."""
        parts = list(in_parts(texts))
        encoded, documents = iter(self.encode_parts(parts)), []
        held: list[np.ndarray] = []
        for part in parts:
            held.append(next(encoded))
            if not isinstance(part, Part):
                documents.append(held[0] if len(held) == 1 else np.concatenate(held))
                held = []
        return documents

    def encode_parts(self, parts: list[str], goes_on: bool = False) -> list[np.ndarray]:
        """Token ids of each part, a 1-D array per part; if `goes_on` is `True`, the first part begins no document."""
        if self.omits_gap:
            before = [goes_on, *(isinstance(part, Part) for part in parts[:-1])]
            parts = [part.removeprefix(" ") if inner else part for part, inner in zip(parts, before, strict=True)]
        with _threads(self.num_proc):
            encodings = self._encoded(parts)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def _encoded(self, parts: list[str]) -> Iterable[Any]:
        encode = partial(self.backend.encode_batch_fast, add_special_tokens=False)
        if self.num_proc is None or self.num_proc == 1:
            return encode(parts)
        # The library's own threads are as many as there are cores, from its first use on.
        size = max(1, -(-len(parts) // (SHARES * self.num_proc)))
        groups = [parts[first : first + size] for first in range(0, len(parts), size)]
        with ThreadPoolExecutor(self.num_proc) as pool:
            return chain.from_iterable(pool.map(encode, groups))

    def _ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids


@contextmanager
def _threads(num_proc: int | None) -> Iterator[None]:
    """Sets the threads of the tokenizers library, and restores the user's setting at the end of the block."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if num_proc is not None:
        os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
