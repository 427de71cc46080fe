from .method import EarlyBert

__all__ = ["EarlyBert"]
