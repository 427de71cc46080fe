"""Train large, then compress (Li et al., 2020)."""

from .method import Compress

__all__ = ["Compress"]
