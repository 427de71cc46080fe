"""Training of tokenizers on the user's own text."""

import json
import os
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.core.random import indexed
from hf_effpt.data.corpus import Corpus, open_corpus

# The ids of BERT's special tokens are their places here.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Smaller vocabularies have no room for letters and the commonest syllables.
MIN_VOCAB_SIZE = {"wordpiece": 256, "bpe": 320}
# Characters with tokens of their own, as in BERT's multilingual vocabularies; rarer ones are [UNK].
MAX_ALPHABET = 1000
# Separates the documents sampled here from those a seed holds out for validation.
SAMPLE_SEED = 0x746F6B


def train_tokenizer(
    corpus: Corpus | str,
    *,
    vocab_size: int = 8192,
    kind: str = "wordpiece",
    lowercase: bool = True,
    out: str | os.PathLike | None = None,
    max_bytes: int = 64 * 2**20,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer; the same text always gives the same vocabulary.

    `"wordpiece"` is BERT's (unknown characters become `[UNK]`); `"bpe"` works on bytes, so nothing is unknown. Room
    that a corpus of few different words leaves in the vocabulary is filled with `[unusedN]`.

    Args:
        corpus (`Corpus` or `str`): The text, or what `open_corpus` takes.
        vocab_size (`int`, *optional*, defaults to 8192): Number of tokens, special ones included; a multiple of 64,
            for which matrix kernels are fast.
        kind (`str`, *optional*, defaults to `"wordpiece"`): `"wordpiece"` or `"bpe"`.
        lowercase (`bool`, *optional*, defaults to `True`): If `True`, folds upper case (and, for WordPiece, accents).
        out (`str`, *optional*): Folder to save the tokenizer in, for `AutoTokenizer.from_pretrained`.
        max_bytes (`int`, *optional*, defaults to 64 MiB): Approximate size of the sample of documents to train on.
        model_max_length (`int`, *optional*, defaults to 512): Longest input, in tokens, that the tokenizer announces.

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
    corpus = open_corpus(corpus) if isinstance(corpus, str) else corpus
    texts = _sample(corpus, max_bytes)
    train = _train_wordpiece if kind == "wordpiece" else _train_bpe
    tokenizer = train(texts, vocab_size, lowercase, model_max_length)
    if out is not None:
        tokenizer.save_pretrained(out)
    return tokenizer


def _sample(corpus: Corpus, max_bytes: int) -> Iterator[str]:
    """About `max_bytes` of documents: spread over a corpus of known size, else its beginning."""
    share = min(1.0, max_bytes / corpus.num_bytes) if corpus.num_bytes else 1.0
    used = 0
    for index, text in enumerate(corpus.texts()):
        # The first document is always read: a corpus of one large document has a small share too.
        if index and share < 1 and indexed(np.array([index]), SAMPLE_SEED)[0] >= share:
            continue
        size = len(text.encode())
        if used + size > max_bytes:
            text = text[: max_bytes - used]
        yield text
        used += size
        if used >= max_bytes:
            return


def _train_wordpiece(
    texts: Iterator[str], vocab_size: int, lowercase: bool, model_max_length: int
) -> PreTrainedTokenizerFast:
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    normalized = [normalizer.normalize_str(text) for text in texts]
    alphabet = _alphabet(normalized, limit=min(MAX_ALPHABET, vocab_size // 4))
    # The trainer numbers continuation letters in the order of a hash map, different each run, and breaks ties by
    # number. Passed as special tokens they are numbered beforehand, and the vocabulary is reproducible.
    splitter = pre_tokenizers.BertPreTokenizer()
    inner = [f"##{letter}" for letter in alphabet if len(splitter.pre_tokenize_str(f"a{letter}a")) == 1]
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
    vocab = _fill(trained.get_vocab(), vocab_size)
    return BertTokenizer(vocab=vocab, do_lower_case=lowercase, model_max_length=model_max_length)


def _alphabet(texts: Iterable[str], limit: int) -> list[str]:
    """The `limit` commonest characters, ties decided by code point, sorted by code point."""
    counts = np.zeros(0x110000, np.int64)
    for text in texts:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        letters, times = np.unique(codes, return_counts=True)
        counts[letters] += times
    counts[[code for code in np.flatnonzero(counts) if chr(code).isspace()]] = 0
    commonest = np.argsort(-counts, kind="stable")[:limit]
    return [chr(code) for code in np.sort(commonest) if counts[code]]


def _train_bpe(
    texts: Iterator[str], vocab_size: int, lowercase: bool, model_max_length: int
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    folding = [normalizers.NFC(), normalizers.Lowercase()] if lowercase else [normalizers.NFC()]
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
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS} | {"mask_token": mask}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=model_max_length, **names)


def _fill(vocab: dict[str, int], vocab_size: int) -> dict[str, int]:
    """Vocabulary sorted by id, filled up to `vocab_size`."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokens += [f"[unused{index}]" for index in range(vocab_size - len(tokens))]
    return {token: index for index, token in enumerate(tokens)}
