"""The special tokens pre-training needs, and a tokenizer's fast backend prepared for running text."""

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
    """
    The ids of the special tokens that masked pre-training on packed rows uses.

    Raises:
        EffptError: the tokenizer lacks some of them.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep", "mask")}
    missing = [f"{role}_token" for role, token_id in ids.items() if token_id is None]
    if missing:
        raise EffptError(
            f"The tokenizer {_name(tokenizer)} has no {', '.join(missing)}, which masked pre-training needs. Use the "
            "tokenizer of an encoder (BERT, RoBERTa, ELECTRA, ...), train one with `effpt tokenizer`, or add the "
            "tokens with tokenizer.add_special_tokens."
        )
    return SpecialIds(**ids)


def text_backend(tokenizer) -> Tokenizer:
    """
    A copy of the tokenizer's fast backend that reads running text: nothing is cut off or padded, and a special token
    spelled out in the text (`"[MASK]"`) is text.

    Raises:
        EffptError: the tokenizer has no fast backend.
    """
    if not tokenizer.is_fast:
        raise EffptError(
            f"The tokenizer {_name(tokenizer)} is a {type(tokenizer).__name__} without a fast (Rust) backend. "
            "Use a fast tokenizer, one that saves a tokenizer.json."
        )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def continuations(tokenizer) -> np.ndarray:
    """
    For each token of the vocabulary, whether it goes on with the word of the token before.

    Raises:
        EffptError: the tokenizer does not mark words.
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
            "SentencePiece), which whole words need. Use such a tokenizer, or set whole_word to False and leave out "
            "methods that look at words."
        )
    special = set(tokenizer.all_special_tokens)
    return np.array([not token.startswith(starts) and token not in special for token in tokens])


def _name(tokenizer) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)
