"""The text that is measured on: the user's own, or a sample if there is much of it, since packing takes minutes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_effpt.data.corpus import Corpus, open_corpus
from hf_effpt.data.shards.opening import is_rows
from hf_effpt.data.text_sample import sample_of

SAMPLE_BYTES = 4 * 2**20
MOST_READ = 2**30  # bytes of text to sample from; of more, or an unknown number, the beginning is taken
HELD_OUT = "0.05"  # of a sample, where the share of a large text would be too little
OF_SOURCE = frozenset("dataset text_column split streaming documents select validation cache_dir".split())


def text_of_pilot(data: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], float | None]:
    """Settings of the section `data` for a measurement, and the share of the text that they read.

    A sample is written to `folder`, with its cache. The share is `None` if the size of the text is unknown. Raises the
    `EffptError` of text that cannot be read.
    """
    if is_rows(data["dataset"]):  # packed already
        return dict(data), 1.0
    keys = ("text_column", "split", "streaming", "documents", "cache_dir")
    corpus = open_corpus(data["dataset"], **{key: data[key] for key in keys if data.get(key) is not None})
    if corpus.num_bytes is not None and corpus.num_bytes <= SAMPLE_BYTES:
        return dict(data), 1.0
    pieces = _first(corpus) if (corpus.num_bytes or MOST_READ) >= MOST_READ else sample_of(corpus, SAMPLE_BYTES)
    sample = folder / "sample.jsonl"
    sample.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    size = sum(len(piece.encode()) for piece in pieces)
    own = {"dataset": str(sample), "validation": HELD_OUT, "cache_dir": str(folder / "cache")}
    share = None if corpus.num_bytes is None else min(1.0, size / corpus.num_bytes)
    return {key: value for key, value in data.items() if key not in OF_SOURCE} | own, share


def _first(corpus: Corpus) -> list[str]:
    """The beginning of a text."""
    pieces: list[str] = []
    size = 0
    for piece in corpus.in_parts().texts():
        pieces.append(piece)
        size += len(piece)
        if size >= SAMPLE_BYTES:
            break
    return pieces
