"""Arithmetic of notes: means over the neighbourhood of words, and moving averages of them.

B batch, L row length, D hidden size, M entries, C places for occurrences.
"""

import torch
from torch import Tensor

from .lookup import Occurrences, Words


def window_means(hidden_BLD: Tensor, found: Occurrences, words: Words, k: int) -> Tensor:
    """Mean output over each word and the `k` tokens on either side of it, fp32 of shape `(places, hidden_size)`.

    The window ends with the text that the word is in. Sums are differences of running sums, which need fp32.
    """
    length = hidden_BLD.shape[1]
    at = found.row_C, found.first_C
    low_C = torch.maximum(found.first_C - k, words.text_first_BL[at])
    high_C = torch.minimum(found.end_C + k, words.text_end_BL[at])
    sums_TD = hidden_BLD.cumsum(dim=1, dtype=torch.float32).flatten(0, 1)
    row_C = found.row_C * length
    means_CD = sums_TD[row_C + high_C - 1]
    means_CD -= torch.where((low_C > 0)[:, None], sums_TD[row_C + (low_C - 1).clamp(min=0)], 0.0)
    return means_CD.div_((high_C - low_C).clamp(min=1)[:, None])


def take_in(
    vectors_MD: Tensor, entry_C: Tensor, used_C: Tensor, notes_CD: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Updates each entry as a moving average of its notes, in their order, in closed form.

    After m notes n_1 .. n_m an entry v is (1 - gamma)^m v + sum_j gamma (1 - gamma)^(m - j) n_j.

    Returns:
        The sum of the relative changes ||new - old|| / ||old|| of the entries written, and their number.
    """
    places, entries = len(entry_C), len(vectors_MD)
    # Equal entries side by side, each in the order of its occurrences; unused places come last.
    sorted_C, order_C = torch.where(used_C, entry_C, entries).sort(stable=True)
    place_C = torch.arange(places, device=entry_C.device)
    opens_C = torch.ones_like(used_C)
    opens_C[1:] = sorted_C[1:] != sorted_C[:-1]
    group_C = opens_C.long().cumsum(dim=0) - 1
    rank_C = place_C - torch.where(opens_C, place_C, 0).cummax(dim=0).values
    count_C = torch.zeros_like(place_C).index_add_(0, group_C, torch.ones_like(place_C))
    entry_of_group_C = torch.full_like(place_C, entries).scatter_(0, group_C, sorted_C)
    written_C = entry_of_group_C < entries

    stays = torch.full((), 1.0 - gamma, device=notes_CD.device)
    weight_C = gamma * stays ** (count_C[group_C] - 1 - rank_C)
    weight_C = torch.where(sorted_C < entries, weight_C, 0.0)
    change_CD = torch.zeros_like(notes_CD).index_add_(0, group_C, notes_CD[order_C].mul_(weight_C[:, None]))
    entry_C = torch.where(written_C, entry_of_group_C, 0)
    old_CD = vectors_MD[entry_C]
    fades_C = torch.where(written_C, 1.0 - stays**count_C, 0.0)
    change_CD -= old_CD * fades_C[:, None]
    # Each group is of another entry, so the order of additions does not matter; unused ones add zero.
    vectors_MD.index_add_(0, entry_C, change_CD)
    drift_C = change_CD.norm(dim=1) / old_CD.norm(dim=1).clamp(min=1e-12)
    return torch.where(written_C, drift_C, 0.0).sum(), written_C.sum()
