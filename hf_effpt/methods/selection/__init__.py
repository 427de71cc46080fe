"""Scores more rows than a step holds and learns from a share of them.

method          `Selection`: the settings, and the hooks of a run
  config        default settings by strategy, invalid combinations
strategy        base class of strategies
  strategies    the strategies
  vectors       strategies with a queue of row vectors, running moments and small networks
pool            candidate rows of a step
scoring         inputs of strategies, from a forward pass
picking         choice of rows by score
state           counters and strategy, in the model and its checkpoints
  memory        last loss of each row
  table         losses of a reference model on disk
cost            cost of scoring, and the gain that it needs
"""

from .method import Selection

__all__ = ["Selection"]
