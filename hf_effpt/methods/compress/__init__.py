"""Train large, then compress (Li et al., 2020).

method     `Compress`: the settings, and the hooks of a run
plan       times and sizes of the cuts, and random tickets
distill    the model before the first cut as a teacher
"""

from .method import Compress

__all__ = ["Compress"]
