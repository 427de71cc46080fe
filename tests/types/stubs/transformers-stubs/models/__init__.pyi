# For the type checker, models that the package knows; reading those of all others takes half of its time.
from .auto import *
from .bert import *
from .electra import *
from .modernbert import *
from .roberta import *
