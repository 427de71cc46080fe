# For the type checker, models that the package knows; reading those of all others takes half of its time.
# ruff: noqa: F403
from .auto import *
from .bert import *
from .electra import *
from .modernbert import *
from .roberta import *
