"""Training of tokenizers on the user's own text."""

import json
import os
import re
import unicodedata
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.docstrings import is_english
from hf_effpt.data.text_sample import sample_of
from hf_effpt.data.words import parts_words

# The ids of BERT's special tokens are their places here.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Smaller vocabularies have no room for letters and the commonest syllables.
MIN_VOCAB_SIZE = {"wordpiece": 256, "bpe": 320}
# Characters with tokens of their own; more, up to this share of the text, where the vocabulary has room for them.
ALPHABET, COVERAGE = 1000, 0.9995
# Text counts as English if this share of its words is "the", and of its letters ASCII.
THE, ASCII = 0.02, 0.995
# English text may hold such a share of another language with accents: lists of names, a few quotations. It is looked
# for in lines together of at least so many characters, as many as tell a language.
FOREIGN, TELLING = 0.005, 128
# Joiners and separators of no width; and what else BERT's normalizer drops: control signs and marks of direction.
JOINERS = range(0x200B, 0x200E)
CONTROLS = (
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u00ad\\u200e\\u200f\\u202a-\\u202e\\u2060-\\u2064\\ufeff\\ufffd]"
)
# Characters that BERT's tokenizer takes for a word, at most; and the share of text with joiners, or with longer ones,
# from which on a tokenizer keeps them.
LONGEST, MARKED = 100, 1e-3
# To be raised when equal text and settings give another tokenizer.
FORMAT = 3


def train_tokenizer(
    corpus: Any,
    *,
    vocab_size: int = 8192,
    kind: str = "wordpiece",
    lowercase: bool = True,
    strip_accents: bool | None = None,
    out: str | os.PathLike | None = None,
    max_bytes: int = 64 * 2**20,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer; the same text always gives the same vocabulary.

    `"wordpiece"` is BERT's (unknown characters become `[UNK]`); `"bpe"` works on bytes, so nothing is unknown. A
    WordPiece vocabulary has at least 99.95 % of the characters of the text, unless these take more than three quarters
    of it. Room that a corpus of few different words leaves is filled with its rarer characters, then `[unusedN]`.

    Args:
        corpus (`str`, `Dataset`, `Corpus` or `list`): The text, as [`open_corpus`] takes it.
        vocab_size (`int`, *optional*, defaults to 8192): Number of tokens, special ones included; a multiple of 64,
            for which matrix kernels are fast.
        kind (`str`, *optional*, defaults to `"wordpiece"`): `"wordpiece"` or `"bpe"`.
        lowercase (`bool`, *optional*, defaults to `True`): If `True`, folds upper case.
        strip_accents (`bool`, *optional*): If `True`, letters lose their accents, and most scripts of Asia their vowel
            and tone marks. By default only a lowercasing WordPiece tokenizer does so, as BERT's, and only for English
            text (2 % of its words are "the", 99.5 % of its letters are ASCII, and at most 0.5 % of it is in another
            language with accents) or text that has none.
        out (`str`, *optional*): Folder to save the tokenizer in, for `AutoTokenizer.from_pretrained`.
        max_bytes (`int`, *optional*, defaults to 64 MiB): Size of the sample to train on, from all over the text.
        model_max_length (`int`, *optional*, defaults to 512): Longest input, in tokens, that the tokenizer announces:
            the length of the rows that its model is trained on.

    Raises:
        EffptError: the vocabulary size or kind is not valid, or the corpus has no text.
    """
    if kind not in MIN_VOCAB_SIZE:
        raise EffptError(f"tokenizer_kind={kind!r} is not known; choose one of {', '.join(MIN_VOCAB_SIZE)}.")
    if vocab_size % 64 or vocab_size < MIN_VOCAB_SIZE[kind]:
        fit = max(MIN_VOCAB_SIZE[kind], round(vocab_size / 64) * 64)
        raise EffptError(
            f"vocab_size={vocab_size} must be a multiple of 64 and at least {MIN_VOCAB_SIZE[kind]} for a {kind} "
            f"tokenizer. The nearest that fits is {fit}."
        )
    # In pieces of similar size, so that neither memory nor time depend on how the text is cut.
    texts = sample_of(open_corpus(corpus), max_bytes)
    train = _train_wordpiece if kind == "wordpiece" else _train_bpe
    tokenizer = train(texts, vocab_size, lowercase, strip_accents, model_max_length)
    if out is not None:
        tokenizer.save_pretrained(out)
    return tokenizer


def _train_wordpiece(
    texts: list[str], vocab_size: int, lowercase: bool, strip_accents: bool | None, model_max_length: int
) -> PreTrainedTokenizerFast:
    counts = _counts(texts)
    english = _is_english(texts, counts)
    if strip_accents is None:
        accented = [character for character in _falling(counts) if _has_accent(character)]
        plain = not accented or (english and _foreign_share(texts, accented) <= FOREIGN)
        strip_accents = lowercase and plain
    # As BERT's normalizer has it, accents go with upper case unless it is told otherwise.
    told = None if strip_accents == lowercase else strip_accents
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=told)
    splitter, own = pre_tokenizers.BertPreTokenizer(), not english and (_has_joiners(counts) or _has_long_runs(texts))
    if own:
        normalizer = normalizers.Sequence(
            [
                normalizers.Replace(Regex(CONTROLS), ""),
                normalizers.BertNormalizer(clean_text=False, lowercase=lowercase, strip_accents=told),
            ]
        )
        splitter = pre_tokenizers.Sequence([splitter, pre_tokenizers.Split(Regex(f".{{1,{LONGEST}}}"), "isolated")])
    normalized = [normalizer.normalize_str(text) for text in texts]
    counts = _counts(normalized)
    alphabet = _alphabet(counts, min(ALPHABET, vocab_size // 4), room=vocab_size * 3 // 4)
    inner = [f"##{letter}" for letter in alphabet if not parts_words(letter)]
    if english:  # such vocabularies stay as they were when Chinese characters had forms that never occur
        inner = [f"##{letter}" for letter in alphabet if len(splitter.pre_tokenize_str(f"a{letter}a")) == 1]
    # The trainer numbers continuation letters in the order of a hash map, different each run, and breaks ties by
    # number. Passed as special tokens they are numbered beforehand, and the vocabulary is reproducible.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = splitter
    trained.train_from_iterator(normalized, trainer)
    known = set(alphabet)
    rarer = [letter for letter in _falling(counts) if letter not in known]
    forms = [[letter] if parts_words(letter) else [letter, f"##{letter}"] for letter in rarer]
    vocab = _fill(trained.get_vocab(), vocab_size, chain.from_iterable(forms))
    if own:  # loading a BertTokenizer makes BERT's normalizer anew
        trained.model, trained.normalizer = models.WordPiece(vocab=vocab, unk_token="[UNK]"), normalizer
        trained.decoder = decoders.WordPiece()
        return _fast_tokenizer(trained, "[MASK]", model_max_length)
    return BertTokenizer(vocab=vocab, do_lower_case=lowercase, strip_accents=told, model_max_length=model_max_length)


def _counts(texts: Iterable[str]) -> np.ndarray:
    """Number of each character by code point, without white space."""
    counts = np.zeros(0x110000, np.int64)
    for text in texts:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        letters, times = np.unique(codes, return_counts=True)
        counts[letters] += times
    counts[[code for code in np.flatnonzero(counts) if chr(code).isspace()]] = 0
    return counts


def _falling(counts: np.ndarray) -> list[str]:
    """All characters that occur, the commonest first, ties decided by code point."""
    return [chr(code) for code in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]]


def _has_accent(character: str) -> bool:
    """`True` if the character is a mark, or a letter with one, or becomes others where accents are stripped."""
    return unicodedata.category(character) == "Mn" or unicodedata.normalize("NFD", character) != character


def _has_joiners(counts: np.ndarray) -> bool:
    """`True` for text with joiners and separators of no width in it, which BERT's normalizer drops as control signs.

    Persian, Malayalam or Sinhala are spelled with them, and Khmer parts its words so.
    """
    return counts[list(JOINERS)].sum() > MARKED * counts.sum()


def _has_long_runs(texts: list[str]) -> bool:
    """`True` for text with runs of over 100 characters that nothing parts, words unknown to BERT's tokenizer.

    Thai, for example, has a space only between its sentences.
    """
    found, splitter = re.compile(rf"\S{{{LONGEST + 1}}}"), pre_tokenizers.BertPreTokenizer()
    lengths = (
        last - first for text in texts if found.search(text) for _, (first, last) in splitter.pre_tokenize_str(text)
    )
    return sum(length for length in lengths if length > LONGEST) > MARKED * sum(map(len, texts))


def _is_english(texts: list[str], counts: np.ndarray) -> bool:
    """`True` for text that is nearly all English, by its commonest word and its letters."""
    letters = sum(counts[ord(character)] for character in _falling(counts) if character.isalpha())
    ascii_letters = sum(counts[code] for code in range(128) if chr(code).isalpha())
    # Counted without a list of the words, of which a text of many megabytes has millions.
    words = sum(1 + text.count(" ") + text.count("\n") for text in texts)
    the = sum(text.lower().count(" the ") for text in texts)
    return the >= max(1, THE * words) and ascii_letters >= ASCII * letters


def _foreign_share(texts: list[str], accented: list[str]) -> float:
    """Share of a text that has letters with accents in it and is not English, in lines of [`TELLING`] characters."""
    found, size = re.compile(f"[{re.escape(''.join(accented))}]"), 0
    for text in texts:
        if not found.search(text):
            continue
        lines: list[str] = []
        for line in text.splitlines():
            if lines and len(lines[-1]) < TELLING:
                lines[-1] += f" {line}"
            else:
                lines.append(line)
        size += sum(len(line) for line in lines if found.search(line) and not is_english(line))
    return size / max(1, sum(map(len, texts)))


def _alphabet(counts: np.ndarray, limit: int, room: int = 0) -> list[str]:
    """The `limit` commonest characters, ties decided by code point, sorted by code point.

    There are more of them, up to `COVERAGE` of the text, if all with their continuation forms fit into `room`.
    """
    falling = _falling(counts)
    covered = counts[[ord(character) for character in falling]].cumsum() / max(1, counts.sum())
    needed = falling[: np.searchsorted(covered, COVERAGE) + 1]
    entries = np.cumsum([1 if parts_words(character) else 2 for character in needed])
    return sorted(falling[: max(limit, np.searchsorted(entries, room, side="right"))])


def _train_bpe(
    texts: list[str], vocab_size: int, lowercase: bool, strip_accents: bool | None, model_max_length: int
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    stripping = [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
    folding = [*stripping, normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence(folding)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    # A mask stands for a word and the space before it.
    mask = AddedToken("[MASK]", lstrip=True, special=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS[:-1], mask],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    backend.model = models.BPE(vocab=_fill(model["vocab"], vocab_size), merges=merges)
    return _fast_tokenizer(backend, mask, model_max_length)


def _fast_tokenizer(backend: Tokenizer, mask: str | AddedToken, model_max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that is loaded with all the parts of `backend`, with BERT's special tokens and forms of input."""
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS} | {"mask_token": mask}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        # Those of BERT, so that pairs of texts come with their segments.
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


def _fill(vocab: dict[str, int], vocab_size: int, more: Iterable[str] = ()) -> dict[str, int]:
    """Vocabulary sorted by id, filled up to `vocab_size`, with `more` tokens while there are some."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokens = [*tokens, *more][:vocab_size]
    tokens += [f"[unused{index}]" for index in range(vocab_size - len(tokens))]
    return {token: index for index, token in enumerate(tokens)}
