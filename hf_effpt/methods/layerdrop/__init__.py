"""LayerDrop (Fan et al., 2020) and progressive layer dropping (Zhang & He, 2020).

method      `LayerDrop`: the settings, and the hooks of a run
schedules   drop rates by depth and by progress
scaling     scale of the layers that run, so that the expected change of the hidden states stays
heads       dropping of attention heads
"""

from .method import LayerDrop

__all__ = ["LayerDrop"]
