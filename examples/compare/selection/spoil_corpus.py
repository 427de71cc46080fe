"""Spoils a corpus with copies (half of it) and noise (a fifth), so that the selection of rows matters.

    python examples/compare/selection/spoil_corpus.py corpus/ --out spoiled/
    effpt compare ... --data.dataset spoiled/ --data.validation spoiled/ --data.isolate_documents true

Of the training bytes, 30 % are documents of the corpus, 50 % exact copies of a tenth of these documents, and 20 %
noise: documents of words sampled uniformly from the vocabulary of the corpus. The validation split is kept; without
one, each hundredth document is held out. Isolated documents begin a row, so that copies of them are copies of rows.
"""

import argparse
import json
import random
import sys
from contextlib import suppress
from itertools import accumulate, cycle
from pathlib import Path

from hf_effpt.core.errors import EffptError
from hf_effpt.data.corpus import open_corpus

SHARES = {"originals": 0.3, "copies": 0.5, "noise": 0.2}
REPEATED, LEAST = 0.1, 100  # share of the originals that is copied, least number of documents


def documents(corpus):
    """Returns the training documents and the held-out ones."""
    train = open_corpus(corpus)
    with suppress(EffptError):  # raised if the folder has no validation split
        held_out = open_corpus(corpus, split="validation")
        if train.fingerprint != held_out.fingerprint:
            return list(train.texts()), list(held_out.texts())
    texts = list(train.texts())
    return [text for number, text in enumerate(texts) if number % 100], texts[::100]


def bytes_of(texts):
    return sum(len(text.encode()) for text in texts)


def some(texts, size, seed):
    """Returns random documents of `size` bytes in total."""
    drawn = random.Random(seed).sample(texts, len(texts))
    ends = list(accumulate(bytes_of([text]) for text in drawn))
    return [text for text, end in zip(drawn, ends, strict=True) if end - bytes_of([text]) <= size]


def spoiled(texts, seed=0):
    """Returns the documents of the spoiled corpus by kind: originals, copies and noise."""
    if len(texts) < LEAST:
        sys.exit(f"The corpus has {len(texts)} documents to train on, and it takes {LEAST} to spoil one.")
    draw, size = random.Random(seed), bytes_of(texts)

    def fill(kind, source):
        room = SHARES[kind] * size
        while room > 0:
            yield (text := next(source))
            room -= bytes_of([text])

    kinds = {"originals": list(fill("originals", iter(draw.sample(texts, len(texts)))))}
    repeated = kinds["originals"][: max(1, round(REPEATED * len(kinds["originals"])))]
    kinds["copies"] = list(fill("copies", cycle(repeated)))
    words, lengths = sorted({word for text in texts for word in text.split()}), [len(text.split()) for text in texts]
    noise = iter(lambda: " ".join(draw.choices(words, k=draw.choice(lengths))), None)
    return kinds | {"noise": list(fill("noise", noise))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a folder or file of text, as `data.dataset` takes it")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--megabytes", type=float, help="of text to train on, with a 75th of it held out")
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    train, held_out = documents(args.corpus)
    if args.megabytes is not None:
        size = 1e6 * args.megabytes
        train, held_out = some(train, size, args.seed), some(held_out, size / 75, args.seed)
    kinds = spoiled(train, args.seed)
    mixed = [text for texts in kinds.values() for text in texts]
    args.out.mkdir(parents=True, exist_ok=True)
    for split, texts in (("train", random.Random(args.seed).sample(mixed, len(mixed))), ("validation", held_out)):
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        (args.out / f"{split}-00000.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for kind, texts in kinds.items():
        print(f"{kind}: {len(texts):,} documents, {bytes_of(texts) / bytes_of(mixed):.1%} of the bytes")
