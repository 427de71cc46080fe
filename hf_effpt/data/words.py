"""Words in rows of tokens: which tokens may continue a word, and after which a new one begins.

Words are those of BERT's pre-tokenizer, for every kind of tokenizer: white space separates them, and each punctuation
character (Unicode category P and the ASCII symbols) and each Chinese character is a word of its own.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import decoders, normalizers, pre_tokenizers

from hf_effpt.core.errors import EffptError

_SPACED = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False)
_SPLITTER = pre_tokenizers.BertPreTokenizer()
# Sentencepiece spells a byte it has no piece for like this.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class WordEdges:
    """Part that each token of a vocabulary has in words; both arrays are bool of shape `(vocab_size,)`.

    A token is judged by the first and the last character of the text it stands for. So one of punctuation alone is a
    word of its own, `'s` begins one, and `s.` continues one and ends it.

    Args:
        continues (`np.ndarray`): `True` for tokens that belong to the word of the token before, if that is not closed.
        closes (`np.ndarray`): `True` for tokens after which a new word begins, whatever follows.
    """

    continues: np.ndarray
    closes: np.ndarray

    def joined(self, ids_BL: np.ndarray) -> np.ndarray:
        """`True` for tokens of rows that belong to the word of the token before them, of the shape of `ids_BL`."""
        joined_BL = self.continues[ids_BL]
        joined_BL[:, :1] = False
        joined_BL[:, 1:] &= ~self.closes[ids_BL[:, :-1]]
        return joined_BL


def word_edges(tokenizer) -> WordEdges:
    """The [`WordEdges`] of a tokenizer; special tokens neither continue a word nor close one.

    Raises an `EffptError` if the tokenizer does not mark words.
    """
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    texts, continues = _texts(tokenizer, tokens)
    special = set(tokenizer.all_special_tokens)
    ordinary = np.array([token not in special for token in tokens])
    continues &= np.array([not parts_words(text[:1]) for text in texts])
    # A space at the end of a token belongs to the word that follows it.
    closes = np.array([text[-1:] != " " and parts_words(text[-1:]) for text in texts])
    return WordEdges(continues & ordinary, closes & ordinary)


def _texts(tokenizer, tokens: list[str]) -> tuple[list[str], np.ndarray]:
    """Text that each token stands for, and `True` for tokens that are not marked as the first of a word."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model.get("type") == "WordLevel":
        return tokens, np.zeros(len(tokens), bool)
    if prefix := model.get("continuing_subword_prefix"):
        return [token.removeprefix(prefix) for token in tokens], np.array(
            [token.startswith(prefix) for token in tokens]
        )
    if '"ByteLevel"' in json.dumps([backend["pre_tokenizer"], backend["decoder"]]):
        decoder = decoders.ByteLevel()
        texts = [decoder.decode([token]) for token in tokens]
    elif any(token.startswith("▁") for token in tokens):
        texts = [_BYTE.sub(_character, token.replace("▁", " ")) for token in tokens]
    else:
        raise EffptError(
            f"{type(tokenizer).__name__} does not mark where words begin (## of WordPiece, Ġ of byte-level BPE, ▁ of "
            "SentencePiece). Use one that does, or set whole_word to False and leave out methods that need words."
        )
    return texts, np.ones(len(tokens), bool)


def _character(byte: re.Match) -> str:
    """The ASCII character of a byte; of a part of any other character, the sign that stands for unknown ones."""
    code = int(byte[1], 16)
    return chr(code) if code < 128 else "\ufffd"


@lru_cache(maxsize=2**17)
def parts_words(character: str) -> bool:
    """`True` for a character that no word goes on with: white space, or a word of its own."""
    return len(_SPLITTER.pre_tokenize_str(_SPACED.normalize_str(f"a{character}a"))) > 1
