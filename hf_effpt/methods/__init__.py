"""The package's own methods; a new one is a folder beside these and its name in the line below.

Methods that act at the end of one step do so in this order: what changes the depth stands before what changes the
width.
"""

from hf_effpt.core.registry import register

from .compress import Compress
from .earlybert import EarlyBert
from .layerdrop import LayerDrop
from .layerskip import LayerSkip
from .lottery import Lottery
from .selection import Selection
from .stacking import Stacking
from .tnf import TNF

for _method in (LayerDrop, LayerSkip, Stacking, TNF, EarlyBert, Compress, Lottery, Selection):
    register(_method)

__all__ = ["TNF", "Compress", "EarlyBert", "LayerDrop", "LayerSkip", "Lottery", "Selection", "Stacking"]
