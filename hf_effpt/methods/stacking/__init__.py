from .method import Stacking

__all__ = ["Stacking"]
