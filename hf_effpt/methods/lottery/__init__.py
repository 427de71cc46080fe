from .method import Lottery
from .ticket import SparseTicket

__all__ = ["Lottery", "SparseTicket"]
