"""Which documents are learned from, chosen once before they are packed: those without a double, those of some losses.

N documents, D size of an embedding, C documents of a cluster, P pairs of documents.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from hf_effpt.core.errors import EffptError

Deduplicate = Literal["exact", "near", "semantic"]
Band = Literal["low", "middle", "high"]
# Above which documents are doubles, where nothing else is said.
USUAL_SIMILARITY = {"near": 0.8, "semantic": 0.95}
BANDS = ("low", "middle", "high")

SHINGLE_WORDS = 5
PERMUTATIONS = 128
# Permutations of a long document are taken for so many shingles at a time, to stay small in memory.
SHINGLES_AT_ONCE = 8192
ROUNDS = 20  # of k-means
PAIRS = 10_000  # of documents that are looked at for how alike they are by chance


@dataclass(frozen=True)
class SelectSettings:
    """What documents have to be like to be learned from; where both are asked for, doubles go first.

    Args:
        deduplicate (`str`, *optional*): which doubles go: `exact`, of the same words, whatever their case and the
            white space between; `near`, which share most of their runs of five words; or `semantic`, of which the
            embeddings by `model` are alike (Abbas et al., 2023, SemDeDup, arXiv 2303.09540).
        similarity (`float`, *optional*): what doubles have at least in common, in (0, 1]: of `near` the estimated
            Jaccard similarity, by default 0.8; of `semantic` the cosine, below 1, by default 0.95.
        model (`str`, *optional*): the folder of a stock checkpoint that judges the documents: any encoder for
            embeddings, a masked language model for losses.
        keep (`float`, *optional*): the share of the documents, in (0, 1), that is kept by their masked loss (Ankner et
            al., 2024, arXiv 2405.20541).
        band (`str`, *optional*): which they are: those of `low`, `middle` or `high` loss. There is no default: which
            is best depends on the data.

    Raises:
        EffptError: for settings that are impossible, need others, or select nothing.
    """

    deduplicate: Deduplicate | None = None
    similarity: float | None = None
    model: str | None = None
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
        likeness, share, bands = self.similarity, self.keep, ", ".join(BANDS)
        judged = "`keep`" if share is not None else "`deduplicate: semantic`"
        needs = (
            ("deduplicate", self.deduplicate in (None, "exact", *USUAL_SIMILARITY), "exact, near or semantic"),
            ("similarity", likeness is None or self.deduplicate in USUAL_SIMILARITY,
             "left out: only `deduplicate: near` and `semantic` have it"),
            ("similarity", likeness is None or 0 < likeness <= 1, "above 0 and at most 1"),
            ("similarity", likeness != 1 or self.deduplicate == "near",
             "below 1 for `deduplicate: semantic`, since no cosine is above 1"),
            ("keep", share is None or 0 < share < 1, "above 0 and below 1"),
            ("keep", share is not None or self.band is None, "given with `band`: the share of the documents to keep"),
            ("band", self.band is not None or share is None,
             f"one of {bands}, if there is `keep`; which is best depends on the data, so there is no default"),
            ("band", self.band in (None, *BANDS), f"one of {bands}"),
            ("model", self.model is not None or not self.reads,
             f"the folder of a stock checkpoint, which {judged} judges the documents by"),
            ("model", self.model is None or self.reads,
             "left out, where neither `deduplicate: semantic` nor `keep` and `band` need it"),
        )  # fmt: skip
        for key, holds, needed in needs:
            if not holds:
                raise EffptError(f"`data.select.{key}` is {getattr(self, key)!r}, but must be {needed}.")

    @property
    def reads(self) -> bool:
        """Whether a model has to read the documents."""
        return self.deduplicate == "semantic" or self.keep is not None

    def settings(self) -> dict[str, Any]:
        """What is set, as a recipe has it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class Kept:
    """The documents of a corpus that are trained on, unless they are held out.

    Args:
        chosen_N (`np.ndarray` of shape `(documents,)`): bool, by the document's number in the corpus.
        facts (`Mapping[str, Any]`, *optional*): what packed rows say under `select` of how they were chosen.
    """

    chosen_N: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of which documents they are."""
        return hashlib.sha256(self.chosen_N.astype(bool).tobytes()).hexdigest()[:32]


def without_exact(texts: Iterable[str]) -> np.ndarray:
    """Which documents stay, bool of shape `(documents,)`: of those of the same words the first."""
    seen: set[bytes] = set()
    stays = []
    for text in texts:
        words = hashlib.sha256(" ".join(_words(text)).encode()).digest()[:16]
        stays.append(words not in seen)
        seen.add(words)
    return np.array(stays, bool)


def without_near(texts: Iterable[str], similarity: float) -> np.ndarray:
    """Which documents stay: those that are like none before that stays (MinHash and LSH; Lee et al.,
    2022, arXiv 2107.06499).

    Likeness is the Jaccard similarity of the sets of runs of five words, estimated by 128 permutations, so with a
    standard error of at most 0.05.

    Args:
        texts (`Iterable[str]`): the documents.
        similarity (`float`): from which on they are doubles.

    Returns:
        bool of shape `(documents,)`.

    Raises:
        EffptError: datasketch is not installed.
    """
    datasketch = require_datasketch()
    empty = datasketch.MinHash(PERMUTATIONS)
    with _global_generator_kept():  # from which the index draws names for itself
        # What it finds is judged again, so a double missed costs more than a look too many. And above 0.9 it would be
        # left without bands.
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
    """The module datasketch.

    Raises:
        EffptError: it is not installed.
    """
    try:
        import datasketch
    except ImportError as error:
        raise EffptError(
            "`data.select.deduplicate: near` needs datasketch, which is not installed: `pip install "
            '"hf_effpt[dedup]"`, or use `exact`.'
        ) from error
    return datasketch


def without_semantic(embeddings_ND: np.ndarray, similarity: float) -> np.ndarray:
    """Which documents stay: of those of a cluster whose cosines are above `similarity` the farthest from its centre.

    Clusters are those of k-means, about as many as the square root of the documents (Abbas et al., 2023, SemDeDup,
    arXiv 2303.09540).

    Args:
        embeddings_ND (`np.ndarray` of shape `(documents, size)`): of any length.
        similarity (`float`): the cosine above which documents are doubles.

    Returns:
        bool of shape `(documents,)`.
    """
    with _global_generator_kept():  # from which a part of it draws when it is first imported
        from sklearn.cluster import MiniBatchKMeans  # here, since that is slow

    lengths_N1 = np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
    unit_ND = embeddings_ND / np.maximum(lengths_N1, 1e-12)
    # No early end, which a last digit would decide.
    clusters = MiniBatchKMeans(
        max(1, round(len(unit_ND) ** 0.5)), n_init=1, max_iter=ROUNDS, max_no_improvement=None, random_state=0
    ).fit(unit_ND)
    stays = np.zeros(len(unit_ND), bool)
    for cluster, centre_D in enumerate(clusters.cluster_centers_):
        members_C = np.flatnonzero(clusters.labels_ == cluster)
        # Rounded, so that of equal documents the first is first, whatever the last digit says.
        nearness_C = np.round(unit_ND[members_C].astype(np.float64) @ centre_D.astype(np.float64), 6)
        members_C = members_C[np.argsort(nearness_C, kind="stable")]
        stays[members_C] = _apart(unit_ND[members_C], similarity)
    return stays


def alike_by_chance(embeddings_ND: np.ndarray, similarity: float) -> float:
    """The share of pairs of documents, drawn by lot, whose cosine is above `similarity`.

    Args:
        embeddings_ND (`np.ndarray` of shape `(documents, size)`): of any length.
        similarity (`float`): the cosine above which documents are doubles.
    """
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
    """Which of some vectors of length 1 have no cosine above `similarity` with an earlier one that stays."""
    stays_C = np.ones(len(unit_CD), bool)
    for number in range(1, len(unit_CD)):
        before_CD = unit_CD[:number][stays_C[:number]]
        stays_C[number] = (before_CD @ unit_CD[number]).max() <= similarity
    return stays_C


def in_band(losses_N: np.ndarray, keep: float, band: Band) -> np.ndarray:
    """Which documents stay: the share `keep` of them with low, middle or high losses (Ankner et al., 2024).

    Of equal losses the document that comes first counts as the lower. Documents without a loss go, and are no part of
    what the share is of.

    Args:
        losses_N (`np.ndarray` of shape `(documents,)`): nats a masked token; NaN where there is none.
        keep (`float`): the share.
        band (`str`): `low`, `middle` or `high`.

    Returns:
        bool of shape `(documents,)`.
    """
    rising = np.argsort(losses_N, kind="stable")[: np.count_nonzero(np.isfinite(losses_N))]
    number = round(keep * len(rising))
    first = {"low": 0, "middle": (len(rising) - number) // 2, "high": len(rising) - number}[band]
    stays = np.zeros(len(losses_N), bool)
    stays[rising[first : first + number]] = True
    return stays


@contextmanager
def _global_generator_kept() -> Iterator[None]:
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _shingles(text: str) -> list[bytes]:
    """The different runs of five words of a document, or all of one that is shorter."""
    words = _words(text)
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return [run.encode() for run in {" ".join(words[first : first + SHINGLE_WORDS]): None for first in runs}]
