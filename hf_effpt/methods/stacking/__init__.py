"""Growth in depth: progressive stacking (Gong et al., 2019) and its successors.

method      `Stacking`: the settings, and the hooks of a run
plan        depths and times of growth
slope       slope of the loss, for growth when it flattens
operators   initialisation of new layers from old ones
ligo        learned growth (LiGO, Wang et al., 2023)
"""

from .method import Stacking

__all__ = ["Stacking"]
