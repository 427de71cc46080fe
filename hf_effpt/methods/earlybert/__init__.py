"""EarlyBERT: a structured lottery ticket is drawn early in training (Chen et al., 2021).

method     `EarlyBert`: the settings, and the hooks of a run
search     state of the search for a ticket
drawing    scores of heads and neurons, and the ticket of the highest
"""

from .method import EarlyBert

__all__ = ["EarlyBert"]
