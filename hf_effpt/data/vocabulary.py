"""Vocabulary of a tokenizer: its special tokens, the tokens that continue words, its backend for running text."""

import json
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from hf_effpt.core.errors import EffptError


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens by role."""

    pad: int
    cls: int
    sep: int
    mask: int


def special_ids(tokenizer) -> SpecialIds:
    """Ids of the special tokens of masked pre-training; raises an `EffptError` if the tokenizer lacks some."""
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep", "mask")}
    missing = [f"{role}_token" for role, token_id in ids.items() if token_id is None]
    if missing:
        raise EffptError(
            f"The tokenizer {_name(tokenizer)} has no {', '.join(missing)}, which masked pre-training needs. Use an "
            "encoder's tokenizer (BERT, ELECTRA, ...), train one with `effpt tokenizer`, or add_special_tokens."
        )
    return SpecialIds(**ids)


def text_backend(tokenizer) -> Tokenizer:
    """Copy of the tokenizer's fast backend for running text; raises an `EffptError` if there is none.

    Nothing is cut off or padded, and a special token spelled out in the text (`"[MASK]"`) is text.
    """
    if not tokenizer.is_fast:
        raise EffptError(
            f"The tokenizer {_name(tokenizer)} is a {type(tokenizer).__name__} without a fast (Rust) backend. Use one "
            "that saves a tokenizer.json."
        )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def continuations(tokenizer) -> np.ndarray:
    """`True` for tokens that continue the word of the token before, bool of shape `(vocab_size,)`.

    Raises an `EffptError` if the tokenizer does not mark words.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("type") == "WordLevel":
        return np.zeros(len(tokens), bool)
    prefix = model.get("continuing_subword_prefix")
    if prefix:
        return np.array([token.startswith(prefix) for token in tokens])
    # Byte-level tokens spell a space as Ġ and a line break as Ċ; SentencePiece spells a space as ▁.
    starts = ("Ġ", "Ċ", "▁")
    if not any(token.startswith(starts) for token in tokens):
        raise EffptError(
            f"{type(tokenizer).__name__} does not mark where words begin (## of WordPiece, Ġ of byte-level BPE, ▁ of "
            "SentencePiece). Use one that does, or set whole_word to False and leave out methods that need words."
        )
    special = set(tokenizer.all_special_tokens)
    return np.array([not token.startswith(starts) and token not in special for token in tokens])


def _name(tokenizer) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)
