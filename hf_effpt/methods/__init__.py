"""The package's own methods; a new one is a folder beside these and its name in the line below.

layerdrop   skips layers at random in training
layerskip   learns which layers each row skips
stacking    grows a shallow model to the full depth
tnf         keeps notes on the contexts of rare words
earlybert   finds a narrower subnetwork early and trains only that
compress    trains a large model and cuts it down
lottery     prunes single weights in rounds and rewinds the others
selection   scores training rows and learns from a share of them

Methods that act at the end of the same step do so in this order: depth changes before width.
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
