"""The lottery ticket hypothesis: iterative magnitude pruning with rewinding (Frankle & Carbin, 2019).

method      `Lottery`: the settings, and the hooks of a run
rounds      times at which weights are pruned
ranking     criteria by which weights are ranked
masks       masks of single weights
signs       weights that training begins from: as they were, or constants with signs
supermask   masks learned over frozen weights (Zhou et al., 2019)
ticket      `SparseTicket`: masks and initial weights in a file
"""

from .method import Lottery
from .ticket import SparseTicket

__all__ = ["Lottery", "SparseTicket"]
