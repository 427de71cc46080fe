from .method import LayerDrop

__all__ = ["LayerDrop"]
