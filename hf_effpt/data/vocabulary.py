"""Vocabulary of a tokenizer: its special tokens, its backend for running text."""

from dataclasses import dataclass

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


def _name(tokenizer) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)
