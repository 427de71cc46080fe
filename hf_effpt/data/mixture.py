"""Several corpora as one: all of their documents, or documents drawn in proportion to weights."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from hf_effpt.core.errors import EffptError
from hf_effpt.data.file_readers import Reader
from hf_effpt.data.long_documents import Part

if TYPE_CHECKING:
    from hf_effpt.data.corpus import Corpus


def parts_of_mixture(dataset: Sequence[Any]) -> tuple[list[Any], list[float] | None]:
    """Sources and weights of a list of sources, or of mappings `{path: ..., weight: ...}`.

    Weights are `None` if no mapping has one. Raises an `EffptError` for an empty list, unknown keys, a weight that is
    not above 0, and weights that only some sources have.
    """
    listed = [one if isinstance(one, Mapping) else {"path": one} for one in dataset]
    sources, weights = [one.get("path") for one in listed], [one.get("weight") for one in listed]
    for number, one in enumerate(listed, start=1):
        weight = one.get("weight", 1.0)
        fits = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")
        is_source = one.get("path") not in (None, "") and not isinstance(one["path"], int | float)
        if set(one) - {"path", "weight"} or not is_source or not fits:
            raise EffptError(
                f"Source {number} of the dataset is {dict(one)!r}, but must be a source, or a mapping of its `path` "
                "and its `weight`, a number above 0; put a name that is a number in quotes."
            )
    if not listed or (None in weights and set(weights) != {None}):
        raise EffptError(
            f"The dataset {list(dataset)!r} must hold at least one source, and give all of them a `weight` or none."
        )
    return sources, None if None in weights else [float(weight) for weight in weights]


def mixed(
    corpora: Sequence["Corpus"], weights: Sequence[float] | None
) -> tuple[Reader, Callable[[], str], int | None, list[dict[str, Any]]]:
    """Reader, fingerprint and size of several corpora, and what a pass has drawn from each (filled by each pass).

    Without weights all documents follow one another. With weights each next document comes from the corpus that is
    farthest behind its share of the documents (the first of several), and the pass ends when that has no more:
    documents are never repeated, since a repeated one could be both held out and trained on.
    """
    shares = None if weights is None else [weight / sum(weights) for weight in weights]
    drawn: list[dict[str, Any]] = [{"dataset": corpus.name, "documents": 0} for corpus in corpora]
    for number, one in enumerate(drawn):
        one |= {"documents_by": corpora[number].documents} if corpora[number].documents else {}
        one |= {"weight": shares[number]} if shares else {}

    def read() -> Iterator[str]:
        counts = [0] * len(corpora)
        passes = [corpus.parts() for corpus in corpora]
        if shares is None:
            for number, texts in enumerate(passes):
                for text in texts:
                    counts[number] += not isinstance(text, Part)
                    yield text
        else:
            for wanted in count(1):
                behind = [share * wanted - had for share, had in zip(shares, counts, strict=True)]
                number = behind.index(max(behind))
                text = next(passes[number], None)
                while isinstance(text, Part):
                    yield text
                    text = next(passes[number])
                if text is None:
                    break
                counts[number] += 1
                yield text
        for one, number in zip(drawn, counts, strict=True):
            one["documents"] = number

    def fingerprint() -> str:
        prints = [corpus.fingerprint for corpus in corpora]
        if twice := [number for number, one in enumerate(prints) if one in prints[:number]]:
            raise EffptError(
                f"Sources {prints.index(prints[twice[0]]) + 1} and {twice[0] + 1} of the dataset, "
                f"{corpora[twice[0]].name!r}, have the same contents, so that documents would be both held out and "
                "trained on. Name each source once; a weight makes its share larger."
            )
        rule = [prints, shares]
        return hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:32]

    sizes = [corpus.num_bytes for corpus in corpora]
    known = weights is None and None not in sizes
    return read, fingerprint, sum(sizes) if known else None, drawn
