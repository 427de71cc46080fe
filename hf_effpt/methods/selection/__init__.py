"""Learns from the rows that are judged to teach most, out of more than a step holds."""

from .method import Selection

__all__ = ["Selection"]
