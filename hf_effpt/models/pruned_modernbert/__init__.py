"""A ModernBERT with narrower layers and code of its own: the export of a model whose heads and neurons were cut."""

from . import configuration_pruned_modernbert, modeling_pruned_modernbert
from .configuration_pruned_modernbert import *  # noqa: F403
from .modeling_pruned_modernbert import *  # noqa: F403

__all__ = [*configuration_pruned_modernbert.__all__, *modeling_pruned_modernbert.__all__]
