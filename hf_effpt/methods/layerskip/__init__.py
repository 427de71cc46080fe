"""Layers that learn which rows may skip them.

method     `LayerSkip`: the settings, and the hooks of a run
gates      gates that decide for each row, and their loss
routing    running of a layer on some rows only
"""

from .method import LayerSkip

__all__ = ["LayerSkip"]
