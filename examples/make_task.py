"""Makes a small classification task from the text a model was pre-trained on.

    python examples/make_task.py task.jsonl --dataset builtin:pydoc

With `builtin:pydoc` the label is the package of a docstring; with other text, it says if two passages are adjacent.
"""

import argparse
import json
import random
from collections import defaultdict
from itertools import islice

from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.pydoc import labelled_docstrings

CLASSES, EACH, PASSAGE = 8, 300, 300


def packages():
    """Yields an equal number of docstrings of each of the packages that have most of them."""
    of = defaultdict(list)
    for text, package in labelled_docstrings():
        of[package].append(text)
    for package in sorted(of, key=lambda name: (-len(of[name]), name))[:CLASSES]:
        for text in random.Random(0).sample(of[package], min(EACH, len(of[package]))):
            yield {"text": text[:1000], "label": package}


def neighbours(dataset):
    """Yields pairs of passages, one half adjacent, the other from different places."""
    texts = [text for text in islice(open_corpus(dataset).texts(), 20_000) if len(text) >= 2 * PASSAGE]
    pairs = [(text[at : at + PASSAGE], text[at + PASSAGE : at + 2 * PASSAGE])
             for text in texts for at in range(0, len(text) - 2 * PASSAGE + 1, 2 * PASSAGE)]  # fmt: skip
    pairs = random.Random(0).sample(pairs, min(CLASSES * EACH, len(pairs)))
    for number, (first, second) in enumerate(pairs):
        other = pairs[number - len(pairs) // 2][1]
        yield {
            "text": first,
            "text_pair": second if number % 2 else other,
            "label": "follows" if number % 2 else "other",
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the .jsonl file to write")
    parser.add_argument("--dataset", default="builtin:pydoc")
    args = parser.parse_args()
    rows = list(packages() if args.dataset == "builtin:pydoc" else neighbours(args.dataset))
    with open(args.out, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{len(rows)} examples in {args.out}")
