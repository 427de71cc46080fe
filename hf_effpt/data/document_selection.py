"""Selection of documents before packing: removal of duplicates, and choice by loss.

N documents, D size of an embedding, C documents of a cluster, P pairs of documents.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np

from hf_effpt.core.errors import EffptError
from hf_effpt.core.settings import GIVEN, When, check_effects

Deduplicate = Literal["exact", "near", "semantic"]
Band = Literal["low", "middle", "high"]
# Default similarity from which on documents are duplicates.
USUAL_SIMILARITY = {"near": 0.8, "semantic": 0.95}
BANDS = get_args(Band)

SHINGLE_WORDS = 5
PERMUTATIONS = 128
SHINGLES_AT_ONCE = 8192  # bounds the memory that a long document takes
ROUNDS = 20  # of k-means
PAIRS = 10_000  # sampled to estimate how often documents are alike


@dataclass(frozen=True)
class SelectSettings:
    """Rules by which documents are selected; duplicates are removed before documents are chosen by loss.

    Args:
        deduplicate (`str`, *optional*): duplicates to remove: `exact`, equal up to case and white space; `near`, with
            similar sets of five-word runs; or `semantic`, with similar embeddings by `model` (Abbas et al., 2023,
            SemDeDup, arXiv 2303.09540).
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
    rows record them under `select`.
    """

    chosen_N: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of the selection."""
        return hashlib.sha256(self.chosen_N.astype(bool).tobytes()).hexdigest()[:32]


def without_exact(texts: Iterable[str]) -> np.ndarray:
    """Keeps the first of equal documents, up to case and white space; bool of shape `(documents,)`."""
    seen: set[bytes] = set()
    stays = []
    for text in texts:
        words = hashlib.sha256(" ".join(_words(text)).encode()).digest()[:16]
        stays.append(words not in seen)
        seen.add(words)
    return np.array(stays, bool)


def without_near(texts: Iterable[str], similarity: float) -> np.ndarray:
    """Keeps documents that resemble no kept one before them (MinHash and LSH; Lee et al., 2022, arXiv 2107.06499).

    Compares `similarity` with the Jaccard similarity of sets of five-word runs, estimated by 128 permutations
    (standard error up to 0.05). Returns bool of shape `(documents,)`; raises an `EffptError` without datasketch.
    """
    datasketch = require_datasketch()
    empty = datasketch.MinHash(PERMUTATIONS)
    with _global_generator_kept():  # the index draws names for itself from it
        # Its candidates are compared again, so a missed duplicate costs more than a false candidate; above 0.9 it
        # would have no bands.
        index = datasketch.MinHashLSH(min(similarity, 0.9), PERMUTATIONS, weights=(0.1, 0.9))
    kept: dict[int, np.ndarray] = {}
    stays = []
    for number, text in enumerate(texts):
        sketch = empty.copy()
        shingles = _shingles(text)
        for first in range(0, len(shingles), SHINGLES_AT_ONCE):
            sketch.update_batch(shingles[first : first + SHINGLES_AT_ONCE])
        values = sketch.hashvalues
        stays.append(all(np.mean(kept[other] == values) < similarity for other in index.query(sketch)))
        if stays[-1]:
            kept[number] = values
            index.insert(number, sketch)
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


def without_semantic(embeddings_ND: np.ndarray, similarity: float) -> np.ndarray:
    """Removes semantic duplicates (Abbas et al., 2023, SemDeDup, arXiv 2303.09540).

    Documents are clustered by k-means into about as many clusters as the square root of their number. In each, the
    farthest from its centre is kept first, and those whose cosine with a kept one is above `similarity` are dropped.
    `embeddings_ND` may have any norm. Returns `True` for kept documents, bool of shape `(documents,)`.
    """
    with _global_generator_kept():  # scikit-learn draws from it when it is first imported
        from sklearn.cluster import MiniBatchKMeans  # here, since that is slow

    lengths_N1 = np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
    unit_ND = embeddings_ND / np.maximum(lengths_N1, 1e-12)
    # No early stopping, which a last digit would decide.
    clusters = MiniBatchKMeans(
        max(1, round(len(unit_ND) ** 0.5)), n_init=1, max_iter=ROUNDS, max_no_improvement=None, random_state=0
    ).fit(unit_ND)
    stays = np.zeros(len(unit_ND), bool)
    for cluster, centre_D in enumerate(clusters.cluster_centers_):
        members_C = np.flatnonzero(clusters.labels_ == cluster)
        # Rounded, so that the order of equal documents does not depend on the last digit.
        nearness_C = np.round(unit_ND[members_C].astype(np.float64) @ centre_D.astype(np.float64), 6)
        members_C = members_C[np.argsort(nearness_C, kind="stable")]
        stays[members_C] = _apart(unit_ND[members_C], similarity)
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


def _apart(unit_CD: np.ndarray, similarity: float) -> np.ndarray:
    """Keeps unit vectors that have no cosine above `similarity` with an earlier kept one."""
    stays_C = np.ones(len(unit_CD), bool)
    for number in range(1, len(unit_CD)):
        before_CD = unit_CD[:number][stays_C[:number]]
        stays_C[number] = (before_CD @ unit_CD[number]).max() <= similarity
    return stays_C


def in_band(losses_N: np.ndarray, keep: float, band: Band) -> np.ndarray:
    """Keeps the share `keep` of the documents with low, middle or high losses (Ankner et al., 2024).

    Losses are nats per masked token, NaN if undefined: those documents are dropped and do not count towards the share.
    Of equal losses the earlier document counts as the lower. Returns bool of shape `(documents,)`.
    """
    rising = np.argsort(losses_N, kind="stable")[: np.count_nonzero(np.isfinite(losses_N))]
    number = round(keep * len(rising))
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


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _shingles(text: str) -> list[bytes]:
    """Distinct five-word runs of a document, in order; a shorter document is one run."""
    words = _words(text)
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return [run.encode() for run in {" ".join(words[first : first + SHINGLE_WORDS]): None for first in runs}]
