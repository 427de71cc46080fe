"""Words of a domain that are added to the vocabulary of a tokenizer."""

import copy
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from hf_effpt.core.errors import EffptError

LEAST = 5  # occurrences of a word that is learned
LIMIT = 50_000_000  # characters of text that words are learned from


def words_to_add(tokenizer: Any, asked: str | int, texts: Iterable[str]) -> list[str]:
    """Words that a tokenizer has no token for, in the order in which they are to be added.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): a fast tokenizer.
        asked (`str` or `int`): a file with one word a line; or the number of words to learn from `texts`: those that
            save most tokens, which have the highest product of occurrences and pieces beyond the first.
        texts (`Iterable[str]`): documents, of which the first 50 million characters are read.

    Raises:
        EffptError: for a missing or empty file, or text with too few words that are cut into pieces.
    """
    known = tokenizer.get_vocab()
    if isinstance(asked, str):
        path = Path(asked)
        if not path.is_file():
            raise EffptError(
                f"`data.add_tokens` is {asked!r}, and there is no such file; give one with a word a line, or the "
                "number of words to learn."
            )
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        found = [word for word in dict.fromkeys(lines) if word and word not in known]
        if not found:
            raise EffptError(f"`data.add_tokens`: {asked} has no word that the tokenizer lacks; leave it out.")
        return found
    counts = _count(tokenizer, texts)
    cut = {word: number for word, number in counts.items() if number >= LEAST and word not in known}
    saved = {word: number * (len(pieces_of(tokenizer, word)) - 1) for word, number in cut.items()}
    best = sorted((word for word in saved if saved[word]), key=lambda word: (-saved[word], word))[:asked]
    if len(best) < asked:
        raise EffptError(
            f"`data.add_tokens` is {asked}, but the text has only {len(best)} words of at least {LEAST} occurrences "
            "that the tokenizer cuts into pieces; ask for fewer."
        )
    return best


def pieces_of(tokenizer: Any, word: str) -> list[int]:
    """Ids of the tokens that a word is cut into."""
    return tokenizer.encode(word, add_special_tokens=False)


def with_words(tokenizer: Any, words: list[str]) -> Any:
    """A copy of a tokenizer with tokens for these words, whose ids follow those that it has.

    In a WordPiece they become entries of its vocabulary, so that longer words begin with them, too; in others they are
    tokens of whole words.
    """
    grown = copy.deepcopy(tokenizer)
    content = json.loads(grown.backend_tokenizer.to_str())
    if content["model"]["type"] != "WordPiece":
        grown.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
        return grown
    content["model"]["vocab"] |= {word: len(tokenizer) + at for at, word in enumerate(words)}
    grown._tokenizer = Tokenizer.from_str(json.dumps(content))
    return grown


def pieces_of_added(before: Any, after: Any) -> dict[int, list[int]]:
    """For the id of each added token, the ids of the pieces that the tokenizer cut it into before."""
    new = sorted(set(after.get_vocab().items()) - set(before.get_vocab().items()), key=lambda item: item[1])
    return {index: pieces_of(before, word) for word, index in new}


def _count(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """Occurrences of words of letters, as the tokenizer normalizes and separates them."""
    backend, counts, read = tokenizer.backend_tokenizer, Counter(), 0
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
        places = backend.pre_tokenizer.pre_tokenize_str(normal)
        counts.update(word for _, (first, end) in places if (word := normal[first:end].strip()).isalpha())
        read += len(text)
        if read >= LIMIT:
            break
    return counts
