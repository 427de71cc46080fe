"""How well a tokenizer fits a text."""

from collections.abc import Iterable
from dataclasses import dataclass

from hf_effpt.core.errors import EffptError
from hf_effpt.data.vocabulary import text_backend


@dataclass(frozen=True)
class TokenizerReport:
    """
    What a tokenizer makes of some text.

    Args:
        vocab_size (`int`): Number of tokens in the vocabulary.
        kind (`str`): `"wordpiece"`, `"bpe"`, `"unigram"` or `"wordlevel"`.
        words (`int`): Words of the text, as whitespace parts them.
        tokens (`int`): Tokens the text became.
        unknown_rate (`float`): Share of the tokens that are the unknown token.
        fertility (`float`): Tokens per word.
        bytes_per_token (`float`): UTF-8 bytes of text per token.
    """

    vocab_size: int
    kind: str
    words: int
    tokens: int
    unknown_rate: float
    fertility: float
    bytes_per_token: float


def tokenizer_report(tokenizer, texts: Iterable[str], *, max_bytes: int = 4 * 2**20) -> TokenizerReport:
    """
    Measures a tokenizer on text, best on text it was not trained on.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): The tokenizer.
        texts (`Iterable[str]`): Documents.
        max_bytes (`int`, *optional*, defaults to 4 MiB): Stop after the document that reaches this size.

    Raises:
        EffptError: there is no text.
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
