"""A BERT with narrower layers and code of its own: the export of a model whose heads and neurons were cut."""

from . import configuration_pruned_bert, modeling_pruned_bert
from .configuration_pruned_bert import *  # noqa: F403
from .modeling_pruned_bert import *  # noqa: F403

__all__ = [*configuration_pruned_bert.__all__, *modeling_pruned_bert.__all__]
