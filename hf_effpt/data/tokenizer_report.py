"""Statistics of a tokenizer on text: fertility, bytes per token, unknown characters."""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import read_json, write_json
from hf_effpt.data.cache import build_once, cache_folder
from hf_effpt.data.corpus import Corpus
from hf_effpt.data.text_sample import sample_of
from hf_effpt.data.vocabulary import text_backend

# To be raised when the same text and tokenizer give another report.
FORMAT = 1


@dataclass(frozen=True)
class TokenizerReport:
    """Statistics of a tokenizer on some text.

    `words` are separated by white space; `fertility` is tokens per word; `kind` is `"wordpiece"`, `"bpe"`, `"unigram"`
    or `"wordlevel"`. `unknown_rate` is the share of characters of the text, without white space, that tokens do not
    tell of: those of unknown tokens, and those that the tokenizer drops, or takes accents from. Upper case and
    compatibility forms do not count. `strip_accents` is `True` if it takes accents from letters. Bytes are of UTF-8.
    """

    vocab_size: int
    kind: str
    words: int
    tokens: int
    unknown_rate: float
    fertility: float
    bytes_per_token: float
    strip_accents: bool


def tokenizer_report(tokenizer, texts: Iterable[str], *, max_bytes: int = 4 * 2**20) -> TokenizerReport:
    """Measures a tokenizer, best on text it was not trained on; raises an `EffptError` if there is none.

    It stops after the document that reaches `max_bytes`.
    """
    backend = text_backend(tokenizer)
    words = tokens = size = 0
    characters: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for text in texts:
        encoding = backend.encode(text, add_special_tokens=False)
        words += len(text.split())
        tokens += len(encoding.ids)
        characters.update(text)
        for token_id, (first, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id == tokenizer.unk_token_id:
                unknown.update(text[first:end])
        size += len(text.encode())
        if size >= max_bytes:
            break
    if not words or not tokens:
        raise EffptError("A tokenizer can only be measured on text with words in it, but there was none.")
    seen = {character: number for character, number in characters.items() if not character.isspace()}
    lost = sum(number if _loses(backend, character) else unknown[character] for character, number in seen.items())
    return TokenizerReport(
        vocab_size=len(tokenizer),
        kind=type(backend.model).__name__.lower(),
        words=words,
        tokens=tokens,
        unknown_rate=lost / max(1, sum(seen.values())),
        fertility=tokens / words,
        bytes_per_token=size / tokens,
        strip_accents=_loses(backend, "é"),
    )


def report_of_corpus(
    tokenizer, corpus: Corpus, *, max_bytes: int = 2**20, cache_dir: str | os.PathLike | None = None
) -> TokenizerReport:
    """Measures a tokenizer on text from all over a corpus; the result is cached, since this takes a pass over it."""

    def measure(target: Path) -> None:
        write_json(target / "report.json", asdict(tokenizer_report(tokenizer, sample_of(corpus, max_bytes))))
        corpus.check_unchanged()

    def load(folder: Path) -> TokenizerReport:
        return TokenizerReport(**read_json(folder / "report.json"))

    parts = [FORMAT, corpus.fingerprint, max_bytes, len(tokenizer), tokenizer.unk_token_id]
    parts.append(text_backend(tokenizer).to_str())
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return load(build_once(cache_folder(cache_dir) / "reports" / key, measure, load))


def _loses(backend: Tokenizer, character: str) -> bool:
    """`True` if the tokenizer's normalizer drops a character or a part of it."""
    if backend.normalizer is None:
        return False
    return _folded(character) != _folded(backend.normalizer.normalize_str(character))


def _folded(text: str) -> str:
    """Text without what most tokenizers fold: case, compatibility forms, white space."""
    return "".join(unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()).split())
