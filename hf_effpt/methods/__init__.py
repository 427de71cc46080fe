"""The methods; a new one is a folder beside these and its name in the line below."""

from hf_effpt.core.method import register

from .layerdrop import LayerDrop
from .layerskip import LayerSkip
from .stacking import Stacking
from .tnf import TNF

for _method in (LayerDrop, LayerSkip, Stacking, TNF):
    register(_method)

__all__ = ["TNF", "LayerDrop", "LayerSkip", "Stacking"]
