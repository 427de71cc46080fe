"""Words of a domain that are added to the vocabulary of a tokenizer."""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

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
        EffptError: for a tokenizer other than a WordPiece, a missing or empty file, lines that are not one word, or
            text with too few words that are cut into pieces.
    """
    _check_kind(tokenizer)
    known = tokenizer.get_vocab()
    if isinstance(asked, str):
        return _read_words(tokenizer, Path(asked), known)
    counts = _count(tokenizer, texts)
    cut = {word: number for word, number in counts.items() if number >= LEAST and word not in known}
    saved = {word: number * (len(pieces_of(tokenizer, word)) - 1) for word, number in cut.items()}
    best = sorted((word for word in saved if saved[word] > 0), key=lambda word: (-saved[word], word))[:asked]
    if len(best) < asked:
        raise EffptError(
            f"`data.add_tokens` is {asked}, but the text has only {len(best)} words of at least {LEAST} occurrences "
            "that the tokenizer cuts into pieces; ask for fewer."
        )
    return best


def _check_kind(tokenizer: Any) -> None:
    """Raises an `EffptError` unless words can be entries of the tokenizer's vocabulary, at ids that follow the others.

    In a byte-level or SentencePiece one a word is cut with the space before it, which an added token would leave.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    if model.get("type") != "WordPiece":
        raise EffptError(
            f"`data.add_tokens` adds to the vocabulary of a WordPiece tokenizer, such as BERT's, and this one is a "
            f"{model.get('type') or type(tokenizer).__name__}; leave it out."
        )
    if sorted(model["vocab"].values()) != list(range(len(tokenizer))):
        raise EffptError(
            "`data.add_tokens` needs a vocabulary whose ids are 0, 1, 2, … without holes or tokens added later, whose "
            "ids would change; leave it out, or save the tokenizer with all its tokens in its vocabulary."
        )


def _read_words(tokenizer: Any, path: Path, known: Mapping[str, int]) -> list[str]:
    """Words of a file, as the tokenizer normalizes them, that it lacks."""
    if not path.is_file():
        raise EffptError(
            f"`data.add_tokens` is {str(path)!r}, and there is no such file; give one with a word a line, or the "
            "number of words to learn."
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise EffptError(f"`data.add_tokens`: {path} is not text in UTF-8 ({error}); save it as UTF-8.") from error
    found, apart = [], []
    for line in dict.fromkeys(filter(None, lines)):
        words = _words(tokenizer, line)
        (found if len(words) == 1 else apart).append(words[0] if len(words) == 1 else line)
    if apart:
        raise EffptError(
            f"`data.add_tokens`: {path} has {len(apart)} lines that the tokenizer does not take for one word "
            f"({', '.join(map(repr, apart[:5]))}); give single words without spaces or punctuation."
        )
    new = [word for word in dict.fromkeys(found) if word not in known]
    if not new:
        raise EffptError(f"`data.add_tokens`: {path} has no word that the tokenizer lacks; leave it out.")
    return new


def pieces_of(tokenizer: Any, word: str) -> list[int]:
    """Ids of the tokens that a word is cut into."""
    return tokenizer.encode(word, add_special_tokens=False)


def with_words(tokenizer: Any, words: list[str]) -> Any:
    """A copy of a WordPiece tokenizer with these words in its vocabulary; their ids follow those that it has.

    Longer words then begin with them, too.
    """
    grown = copy.deepcopy(tokenizer)
    content = json.loads(grown.backend_tokenizer.to_str())
    content["model"]["vocab"] |= {word: len(tokenizer) + at for at, word in enumerate(words)}
    grown._tokenizer = Tokenizer.from_str(json.dumps(content))
    return grown


def pieces_of_added(before: Any, after: Any) -> dict[int, list[int]]:
    """For the id of each added token, the ids of the pieces that the tokenizer cut it into before."""
    new = sorted(set(after.get_vocab().items()) - set(before.get_vocab().items()), key=lambda item: item[1])
    return {index: pieces_of(before, word) for word, index in new}


def _count(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """Occurrences of words of letters, as the tokenizer normalizes and separates them."""
    counts, read = Counter(), 0
    for text in texts:
        counts.update(word for word in _words(tokenizer, text) if word.isalpha())
        read += len(text)
        if read >= LIMIT:
            break
    return counts


def _words(tokenizer: Any, text: str) -> list[str]:
    """Words of a text, as the tokenizer normalizes and separates them."""
    backend = tokenizer.backend_tokenizer
    normal = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    if backend.pre_tokenizer is None:
        return normal.split()
    return [word for _, (first, end) in backend.pre_tokenizer.pre_tokenize_str(normal) if (word := normal[first:end])]
