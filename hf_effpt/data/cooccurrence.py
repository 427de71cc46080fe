"""Word vectors from the co-occurrence of tokens in packed rows: positive pointwise mutual information and its SVD."""

from collections.abc import Collection

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils.extmath import randomized_svd

from hf_effpt.core.errors import EffptError

from .packed_rows import PackedRows

# A pair of tokens counts 12 / distance, up to a distance of 4: whole numbers, whose sums do not depend on the order.
WEIGHTS = (12, 6, 4, 3)
SMOOTHING = 0.75  # power of the counts of contexts, against a bias towards rare ones (Levy et al., 2015)
TOKENS = 8_000_000
AT_A_TIME = 4_000_000  # tokens
OVERSAMPLES, ITERATIONS = 10, 2  # of the randomized SVD


def cooccurrences(
    rows: PackedRows, vocab_size: int, special_ids: Collection[int], tokens: int = TOKENS
) -> tuple[csr_array, int]:
    """Counts how often each token is near each other one, each time 12 / distance, up to a distance of 4.

    Special tokens have no neighbours, and are none. Where rows tell their documents, neither are tokens of two
    documents.

    Args:
        rows (`PackedRows`): the text.
        vocab_size (`int`): number of tokens.
        special_ids (`Collection[int]`): ids of special tokens, padding included.
        tokens (`int`, *optional*): how many are read, in rows that are evenly spaced.

    Returns:
        symmetric counts, int64 of shape `(vocab_size, vocab_size)`; and the number of tokens read.

    Raises:
        EffptError: for an id that is not in the vocabulary.
    """
    length = rows.sequence_length
    number = min(len(rows), -(-tokens // length))
    chosen = np.linspace(0, len(rows) - 1, number).astype(np.int64)
    special = np.zeros(vocab_size, bool)
    special[list(special_ids)] = True
    counts = csr_array((vocab_size, vocab_size), dtype=np.int64)
    for part in np.array_split(chosen, -(-number * length // AT_A_TIME)):
        batch = rows.rows(part)
        if (largest := batch["input_ids"].max()) >= vocab_size:
            raise EffptError(
                f"The rows have the token {largest}, but the vocabulary of the model has only {vocab_size}; pack the "
                "text with the tokenizer of the model, or make the model with as large a `vocab_size`."
            )
        for distance, weight in enumerate(WEIGHTS, start=1):
            counts = counts + weight * _pairs(batch, special, distance)
    return counts + counts.T.tocsr(), number * length


def _pairs(batch: dict[str, np.ndarray], special: np.ndarray, distance: int) -> csr_array:
    """Number of pairs of tokens at this distance, with the earlier one as row and the later one as column."""
    ids, size = batch["input_ids"], len(special)
    is_word = ~special[ids]
    near = is_word[:, :-distance] & is_word[:, distance:]
    if "document_ids" in batch:
        near &= batch["document_ids"][:, :-distance] == batch["document_ids"][:, distance:]
    # Sorting numbers of pairs is twice as fast as summing duplicates of a sparse matrix.
    pairs, counts = np.unique((ids[:, :-distance] * size + ids[:, distance:])[near], return_counts=True)
    ends = np.searchsorted(pairs, np.arange(size + 1) * size)
    return csr_array((counts, (pairs % size).astype(np.int32), ends), shape=(size, size))


def positive_information(counts: csr_array) -> csr_array:
    """Positive pointwise mutual information of tokens and contexts, max(0, log P(w, c) / (P(w) P(c))), float32.

    P(c) is proportional to the count of a context to the power 0.75 (Levy et al., 2015, section 3.2). `counts` have
    tokens as rows and contexts as columns; so has the result, without entries that are 0.
    """
    tokens, contexts = (np.maximum(counts.sum(axis=axis), 1) for axis in (1, 0))
    smoothed = counts.sum(axis=0) ** SMOOTHING
    of_contexts = SMOOTHING * np.log(contexts) - np.log(max(1.0, smoothed.sum()))
    found = np.log(counts.data, dtype=np.float32)
    found -= np.repeat(np.log(tokens).astype(np.float32), np.diff(counts.indptr))
    found -= of_contexts.astype(np.float32)[counts.indices]
    information = csr_array((np.maximum(found, 0.0), counts.indices, counts.indptr), shape=counts.shape)
    information.eliminate_zeros()
    return information


def word_vectors(information: csr_array, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Vectors of tokens, near for those that occur in the same contexts, by a truncated SVD (Levy and Goldberg, 2014).

    They are the first `size` left singular vectors, by a randomized SVD (Halko et al., 2011), times the singular
    values. (Levy et al. take their roots; in short trials models learned no slower from the values themselves.)

    Args:
        information (`csr_array`): as [`positive_information`] returns it.
        size (`int`): dimension of the vectors.
        seed (`int`): seed of the randomized SVD.

    Returns:
        ids of tokens that have contexts; their vectors, float32 of shape `(tokens, size)`, with the mean 0 in each
        dimension and the standard deviation 1 over all numbers; and the FLOPs, as [`svd_flops`] has them.

    Raises:
        EffptError: for fewer tokens with contexts than are needed for this size.
    """
    known = np.flatnonzero(np.diff(information.indptr))
    if len(known) <= size:
        raise EffptError(
            f"Only {len(known)} tokens of the training text have neighbours, too few for word vectors of {size} "
            "dimensions, which need more tokens than that; use more text, or leave `model.start.embeddings` out."
        )
    square = information[known][:, known]
    left, values, _ = randomized_svd(square, size, n_oversamples=OVERSAMPLES, n_iter=ITERATIONS, random_state=seed)
    vectors = left * values
    vectors -= vectors.mean(axis=0)
    return known, (vectors / vectors.std()).astype(np.float32), svd_flops(len(known), square.nnz, size)


def svd_flops(tokens: int, entries: int, size: int) -> float:
    """FLOPs of the randomized SVD of a sparse square matrix.

    With n `tokens`, z `entries` other than 0, k = `size` + oversamples and q iterations, the matrix is multiplied with
    k vectors 2q + 1 times to find its range, and once to project it: (2q + 2) 2zk. A QR decomposition of n x k takes
    2nk² and as much to form its Q: once for the range, and once in the SVD of the projection. Its right vectors take
    another 2nk², and the left ones, too: 12nk². Terms of k³ are left out.
    """
    wide = min(tokens, size + OVERSAMPLES)
    return 4.0 * (ITERATIONS + 1) * entries * wide + 12.0 * tokens * wide**2
