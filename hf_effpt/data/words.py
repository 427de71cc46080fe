"""Words in rows of tokens: which tokens may continue a word, and after which a new one begins.

Words are those of BERT's pre-tokenizer, for every kind of tokenizer: white space separates them, and each punctuation
character (Unicode category P and the ASCII symbols) and each Chinese character is a word of its own.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from tokenizers import decoders, normalizers, pre_tokenizers
from torch import Tensor

from hf_effpt.core.characters import spelled, spelling_of
from hf_effpt.core.errors import EffptError

_SPACED = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False)
_SPLITTER = pre_tokenizers.BertPreTokenizer()
# Sentencepiece spells a byte it has no piece for like this.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Byte-level BPE writes bytes that are no printable character of Latin-1 as those from 256 on, in order.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF = {chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*_PRINTED}))}
_BYTE_OF |= {chr(byte): byte for byte in _PRINTED}


@dataclass(frozen=True)
class WordEdges:
    """Part that each token of a vocabulary has in words; both arrays are bool of shape `(vocab_size,)`.

    A token is judged by the first and the last character of the text it stands for. So one of punctuation alone is a
    word of its own, `'s` begins one, and `s.` continues one and ends it. A character that several tokens spell by its
    bytes is judged where they stand one after the other.

    Args:
        continues (`np.ndarray`): `True` for tokens that belong to the word of the token before, if that is not closed.
        closes (`np.ndarray`): `True` for tokens after which a new word begins, whatever follows.
        spellings (`np.ndarray`, *optional*): int64 [`spelling_of`] the bytes of each token; by default all tokens are
            of whole characters.
    """

    continues: np.ndarray
    closes: np.ndarray
    spellings: np.ndarray | None = None

    def joined(self, ids_BL: np.ndarray) -> np.ndarray:
        """`True` for tokens of rows that belong to the word of the token before them, of the shape of `ids_BL`."""
        joined_BL, closes_BL = self.continues[ids_BL], self.closes[ids_BL]
        if self.spellings is None:
            joined_BL[:, 1:] &= ~closes_BL[:, :-1]
        else:
            inside_BL, begins_BL, ends_BL = map(Tensor.numpy, spelled(torch.from_numpy(self.spellings[ids_BL])))
            joined_BL[:, 1:] &= ~(closes_BL | ends_BL)[:, :-1]
            joined_BL = joined_BL & ~begins_BL | inside_BL
        joined_BL[:, :1] = False
        return joined_BL


def word_edges(tokenizer) -> WordEdges:
    """The [`WordEdges`] of a tokenizer; special tokens neither continue a word nor close one.

    Raises an `EffptError` if the tokenizer does not mark words.
    """
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    texts, continues, spellings = _texts(tokenizer, tokens)
    special = set(tokenizer.all_special_tokens)
    ordinary = np.array([token not in special for token in tokens])
    continues &= np.array([not parts_words(text[:1]) for text in texts])
    # A space at the end of a token belongs to the word that follows it.
    closes = np.array([text[-1:] != " " and parts_words(text[-1:]) for text in texts])
    added = tokenizer.get_added_vocab()  # they are written as they are
    spellings = spellings * np.array([token not in added for token in tokens])
    return WordEdges(continues & ordinary, closes & ordinary, spellings if spellings.any() else None)


def _texts(tokenizer, tokens: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Text that each token stands for, `True` for tokens that are not marked as the first of a word, and spellings."""
    whole = np.zeros(len(tokens), np.int64)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model.get("type") == "WordLevel":
        return tokens, np.zeros(len(tokens), bool), whole
    if prefix := model.get("continuing_subword_prefix"):
        marked = np.array([token.startswith(prefix) for token in tokens])
        return [token.removeprefix(prefix) for token in tokens], marked, whole
    if '"ByteLevel"' in json.dumps([backend["pre_tokenizer"], backend["decoder"]]):
        decoder = decoders.ByteLevel()
        texts = [decoder.decode([token]) for token in tokens]
        raw = [bytes(_BYTE_OF.get(character, 0) for character in token) for token in tokens]
    elif any(token.startswith("▁") for token in tokens):
        texts = [_BYTE.sub(_character, token.replace("▁", " ")) for token in tokens]
        raw = [bytes([int(byte[1], 16)]) if (byte := _BYTE.fullmatch(token)) else b"" for token in tokens]
    else:
        raise EffptError(
            f"{type(tokenizer).__name__} does not mark where words begin (## of WordPiece, Ġ of byte-level BPE, ▁ of "
            "SentencePiece). Use one that does, or set whole_word to False and leave out methods that need words."
        )
    return texts, np.ones(len(tokens), bool), np.array([spelling_of(token) for token in raw], np.int64)


def _character(byte: re.Match) -> str:
    """The ASCII character of a byte; of a part of any other character, the sign that stands for unknown ones."""
    code = int(byte[1], 16)
    return chr(code) if code < 128 else "\ufffd"


@lru_cache(maxsize=2**17)
def parts_words(character: str) -> bool:
    """`True` for a character that no word goes on with: white space, or a word of its own."""
    return len(_SPLITTER.pre_tokenize_str(_SPACED.normalize_str(f"a{character}a"))) > 1
