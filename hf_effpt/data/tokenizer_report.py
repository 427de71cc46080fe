"""Statistics of a tokenizer on text: fertility, bytes per token, unknown tokens."""

from collections.abc import Iterable
from dataclasses import dataclass

from hf_effpt.core.errors import EffptError
from hf_effpt.data.vocabulary import text_backend


@dataclass(frozen=True)
class TokenizerReport:
    """Statistics of a tokenizer on some text.

    `words` are separated by white space; `fertility` is tokens per word, `unknown_rate` the share of unknown tokens;
    `kind` is `"wordpiece"`, `"bpe"`, `"unigram"` or `"wordlevel"`. Bytes are those of UTF-8.
    """

    vocab_size: int
    kind: str
    words: int
    tokens: int
    unknown_rate: float
    fertility: float
    bytes_per_token: float


def tokenizer_report(tokenizer, texts: Iterable[str], *, max_bytes: int = 4 * 2**20) -> TokenizerReport:
    """Measures a tokenizer, best on text it was not trained on; raises an `EffptError` if there is none.

    It stops after the document that reaches `max_bytes`.
    """
    backend = text_backend(tokenizer)
    words = tokens = unknown = size = 0
    for text in texts:
        ids = backend.encode(text, add_special_tokens=False).ids
        words += len(text.split())
        tokens += len(ids)
        unknown += ids.count(tokenizer.unk_token_id)
        size += len(text.encode())
        if size >= max_bytes:
            break
    if not words or not tokens:
        raise EffptError("A tokenizer can only be measured on text with words in it, but there was none.")
    return TokenizerReport(
        vocab_size=len(tokenizer),
        kind=type(backend.model).__name__.lower(),
        words=words,
        tokens=tokens,
        unknown_rate=unknown / tokens,
        fertility=tokens / words,
        bytes_per_token=size / tokens,
    )
