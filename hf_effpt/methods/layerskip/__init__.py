from .method import LayerSkip

__all__ = ["LayerSkip"]
