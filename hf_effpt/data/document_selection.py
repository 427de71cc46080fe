"""Selection of documents before packing: removal of duplicates, and choice by loss.

N documents, D size of an embedding, C documents of a cluster, P pairs of documents.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Annotated, Any, Literal, get_args

import numpy as np

from hf_effpt.core.errors import EffptError
from hf_effpt.core.settings import GIVEN, When, check_effects
from hf_effpt.core.shares import part_of
from hf_effpt.data.document_meter import content_keys
from hf_effpt.data.long_documents import Part

Deduplicate = Literal["exact", "near", "semantic"]
Band = Literal["low", "middle", "high"]
# Default similarity from which on documents are duplicates.
USUAL_SIMILARITY = {"near": 0.8, "semantic": 0.95}
BANDS = get_args(Band)

SHINGLE_WORDS = 5
# Text without spaces, such as Chinese, Japanese or Thai, is compared by runs of characters, of about five words.
SHINGLE_CHARACTERS, LONG_WORD = 10, 12
# Letters of scripts without spaces: of South-East Asia and Tibet, Chinese and Japanese.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
PERMUTATIONS = 128
SHINGLES_AT_ONCE = 8192  # bounds the memory that a long document takes
ROUNDS = 20  # of k-means
PAIRS = 10_000  # sampled to estimate how often documents are alike


@dataclass(frozen=True)
class SelectSettings:
    """Rules by which documents are selected; duplicates are removed before documents are chosen by loss.

    Args:
        deduplicate (`str`, *optional*): duplicates to remove, of other documents and of held-out ones: `exact`, equal
            up to case and white space; `near`, with similar sets of runs of five words, or of ten characters where
            text has no spaces; or `semantic`, with similar embeddings by `model` (Abbas et al., 2023, SemDeDup, arXiv
            2303.09540).
        similarity (`float`, *optional*): threshold in (0, 1] from which on documents are duplicates: estimated
            Jaccard similarity for `near`, 0.8 by default; cosine below 1 for `semantic`, 0.95 by default.
        model (`str`, *optional*): folder of a stock checkpoint: any encoder for embeddings, a masked language model
            for losses.
        keep (`float`, *optional*): share of the documents, in (0, 1), kept by their masked-language-modelling loss
            (Ankner et al., 2024, arXiv 2405.20541).
        band (`str`, *optional*): which losses to keep: `low`, `middle` or `high`. No default: the best one depends on
            the data.

    Raises:
        EffptError: settings are out of range, need others, or select nothing.
    """

    deduplicate: Deduplicate | None = None
    similarity: Annotated[float | None, When(deduplicate=("near", "semantic"))] = None
    model: Annotated[str | None, When(deduplicate="semantic"), When(keep=GIVEN)] = None
    keep: float | None = None
    band: Band | None = None

    def __post_init__(self) -> None:
        if self.deduplicate is None and self.keep is None and self.band is None:
            raise EffptError(
                f"`data.select` is {self.settings()}, which selects nothing; give `deduplicate` (exact, near or "
                "semantic), or `model`, `keep` and `band`, or leave `data.select` out."
            )
        if self.similarity is None and self.deduplicate in USUAL_SIMILARITY:
            object.__setattr__(self, "similarity", USUAL_SIMILARITY[self.deduplicate])
        similarity, share, bands = self.similarity, self.keep, ", ".join(BANDS)
        judged = "`keep`" if share is not None else "`deduplicate: semantic`"
        needs = (
            ("deduplicate", self.deduplicate in (None, "exact", *USUAL_SIMILARITY), "exact, near or semantic"),
            ("similarity", similarity is None or 0 < similarity <= 1, "above 0 and at most 1"),
            ("similarity", similarity != 1 or self.deduplicate == "near",
             "below 1 for `deduplicate: semantic`, since no cosine is above 1"),
            ("keep", share is None or 0 < share < 1, "above 0 and below 1"),
            ("keep", share is not None or self.band is None, "given with `band`: the share of the documents to keep"),
            ("band", self.band is not None or share is None,
             f"one of {bands}, if there is `keep`; which is best depends on the data, so there is no default"),
            ("band", self.band in (None, *BANDS), f"one of {bands}"),
            ("model", self.model is not None or not self.reads,
             f"the folder of a stock checkpoint, which {judged} judges the documents by"),
        )  # fmt: skip
        for key, holds, needed in needs:
            if not holds:
                raise EffptError(f"`data.select.{key}` is {getattr(self, key)!r}, but must be {needed}.")
        check_effects(self, "data.select")

    @property
    def reads(self) -> bool:
        """`True` if a model has to read the documents."""
        return self.deduplicate == "semantic" or self.keep is not None

    def settings(self) -> dict[str, Any]:
        """The settings that are given, as a recipe spells them."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class Kept:
    """Selected documents of a corpus.

    `chosen_N` is bool of shape `(documents,)`, by number in the corpus. `facts` say how documents were chosen; packed
    rows record them under `select`. `held_out_N`, of the same shape, is `True` for documents that were held out
    meanwhile, `None` if that is unknown.
    """

    chosen_N: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    held_out_N: np.ndarray | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the selection."""
        return hashlib.sha256(self.chosen_N.astype(bool).tobytes()).hexdigest()[:32]


def without_exact(texts: Iterable[str], held_out: Iterable[str] = ()) -> np.ndarray:
    """Keeps the first of equal documents, up to case and white space, unless it equals one of `held_out`.

    Documents may come in parts. Returns bool of shape `(documents,)`.
    """
    keys = content_keys(texts)
    stays = np.zeros(len(keys), bool)
    stays[np.unique(keys, return_index=True)[1]] = True
    return stays & ~np.isin(keys, content_keys(held_out))


def without_near(texts: Iterable[str], similarity: float, held_out: Iterable[str] = ()) -> np.ndarray:
    """Keeps documents that resemble neither a kept one before them nor one of `held_out`.

    It is MinHash with LSH (Lee et al., 2022, arXiv 2107.06499): compares `similarity` with the Jaccard similarity of
    sets of five-word runs, or runs of ten characters in documents without spaces, estimated by 128 permutations
    (standard error up to 0.05). Documents may come in parts. Returns bool of shape `(documents,)`; raises an
    `EffptError` without datasketch.
    """
    datasketch = require_datasketch()
    empty = datasketch.MinHash(PERMUTATIONS)
    with _global_generator_kept():  # the index draws names for itself from it
        # Its candidates are compared again, so a missed duplicate costs more than a false candidate; above 0.9 it
        # would have no bands.
        index = datasketch.MinHashLSH(min(similarity, 0.9), PERMUTATIONS, weights=(0.1, 0.9))
    kept: dict[int, np.ndarray] = {}
    stays: list[bool] = []
    marked = chain(((part, True) for part in held_out), ((part, False) for part in texts))
    sketch, runs, number = empty.copy(), _Runs(), 0
    for part, apart in marked:
        shingles = [*runs.add(part)]
        for first in range(0, len(shingles), SHINGLES_AT_ONCE):
            sketch.update_batch(shingles[first : first + SHINGLES_AT_ONCE])
        if isinstance(part, Part):
            continue
        values = sketch.hashvalues
        if not apart:
            stays.append(all(np.mean(kept[other] == values) < similarity for other in index.query(sketch)))
        if apart or stays[-1]:
            kept[number] = values
            index.insert(number, sketch)
        sketch, runs, number = empty.copy(), _Runs(), number + 1
    return np.array(stays, bool)


def require_datasketch() -> Any:
    """Imports datasketch; raises an `EffptError` if it is not installed."""
    try:
        import datasketch
    except ImportError as error:
        raise EffptError(
            "`data.select.deduplicate: near` needs datasketch, which is not installed: `pip install "
            '"hf_effpt[dedup]"`, or use `exact`.'
        ) from error
    return datasketch


def without_semantic(
    embeddings_ND: np.ndarray, similarity: float, held_out_HD: np.ndarray | None = None
) -> np.ndarray:
    """Removes semantic duplicates (Abbas et al., 2023, SemDeDup, arXiv 2303.09540).

    Documents are clustered by k-means into about as many clusters as the square root of their number. Of alike ones
    in a cluster the farthest from its centre stays: a document is dropped if its cosine with any farther one, kept or
    not, is above `similarity` (released code, `semdedup.py`), or that with one of `held_out_HD` nearest to the same
    centre. Embeddings may have any norm. Returns `True` for kept documents, bool of shape `(documents,)`.
    """
    with _global_generator_kept():  # scikit-learn draws from it when it is first imported
        from sklearn.cluster import MiniBatchKMeans  # here, since that is slow

    unit_ND = _unit(embeddings_ND)
    unit_HD = unit_ND[:0] if held_out_HD is None else _unit(held_out_HD.astype(unit_ND.dtype))
    # No early stopping, which a last digit would decide.
    clusters = MiniBatchKMeans(
        max(1, round(len(unit_ND) ** 0.5)), n_init=1, max_iter=ROUNDS, max_no_improvement=None, random_state=0
    ).fit(unit_ND)
    nearest_H = clusters.predict(unit_HD) if len(unit_HD) else np.empty(0, int)
    stays = np.zeros(len(unit_ND), bool)
    for cluster, centre_D in enumerate(clusters.cluster_centers_):
        members_C = np.flatnonzero(clusters.labels_ == cluster)
        # Rounded, so that the order of equal documents does not depend on the last digit.
        nearness_C = np.round(unit_ND[members_C].astype(np.float64) @ centre_D.astype(np.float64), 6)
        members_C = members_C[np.argsort(nearness_C, kind="stable")]
        stays[members_C] = apart(unit_ND[members_C], similarity, unit_HD[nearest_H == cluster])
    return stays


def alike_by_chance(embeddings_ND: np.ndarray, similarity: float) -> float:
    """Share of randomly drawn pairs of documents whose cosine is above `similarity`; arguments as above."""
    documents = len(embeddings_ND)
    if documents < 2:
        return 0.0
    drawn = np.random.default_rng(0)
    ones = drawn.integers(0, documents, PAIRS)
    others = (ones + drawn.integers(1, documents, PAIRS)) % documents
    one_PD, other_PD = embeddings_ND[ones], embeddings_ND[others]
    lengths_P = np.linalg.norm(one_PD, axis=1) * np.linalg.norm(other_PD, axis=1)
    return float(((one_PD * other_PD).sum(axis=1) > similarity * np.maximum(lengths_P, 1e-12)).mean())


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)


def apart(unit_CD: np.ndarray, similarity: float, others_HD: np.ndarray | None = None) -> np.ndarray:
    """Keeps unit vectors that have no cosine above `similarity` with an earlier one, kept or not, or with others."""
    nearest = ((unit_CD[:number] @ unit_CD[number]).max(initial=-1.0) for number in range(len(unit_CD)))
    stays_C = np.fromiter((cosine <= similarity for cosine in nearest), bool, len(unit_CD))
    return stays_C if others_HD is None else stays_C & ~np.any(unit_CD @ others_HD.T > similarity, axis=1)


def in_band(losses_N: np.ndarray, keep: float, band: Band) -> np.ndarray:
    """Keeps the share `keep` of the documents with low, middle or high losses (Ankner et al., 2024).

    Losses are nats per masked token, NaN if undefined: those documents are dropped and do not count towards the share.
    Of equal losses the earlier document counts as the lower. Returns bool of shape `(documents,)`.
    """
    rising = np.argsort(losses_N, kind="stable")[: np.count_nonzero(np.isfinite(losses_N))]
    number = part_of(keep, len(rising))
    first = {"low": 0, "middle": (len(rising) - number) // 2, "high": len(rising) - number}[band]
    stays = np.zeros(len(losses_N), bool)
    stays[rising[first : first + number]] = True
    return stays


@contextmanager
def _global_generator_kept() -> Iterator[None]:
    """Restores the state of Python's global random generator at the end of the block."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


class _Runs:
    """Runs of five words of a document that is given part by part; a shorter document is one run.

    Where most of the characters are of scripts without spaces, or words have more than twelve on average, which no
    language with spaces has, runs are of ten characters. The first part of a long document decides.
    """

    def __init__(self) -> None:
        self._size = 0  # of runs
        self._rest: Sequence[str] = ()  # words or characters that a run may go on from
        self._any = False

    def add(self, part: str) -> Iterable[bytes]:
        """The runs, without repetition, that end in the next part."""
        parts: Sequence[str] = part.casefold().split()
        if not self._size:
            letters = sum(map(len, parts))
            spaced = letters <= LONG_WORD * len(parts) and 2 * len(UNSPACED.findall(part)) < letters
            self._size = SHINGLE_WORDS if spaced else SHINGLE_CHARACTERS
        between = " "
        if self._size == SHINGLE_CHARACTERS:
            parts, between = "".join(parts), ""
        parts = [*self._rest, *parts]
        count = len(parts) - self._size + 1
        self._rest = parts[max(0, count) :]
        if count <= 0 and not self._any and not isinstance(part, Part):
            count = 1
        self._any = self._any or count > 0
        return {between.join(parts[first : first + self._size]).encode(): None for first in range(max(0, count))}
