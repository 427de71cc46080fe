"""Leaving the package: export to stock Transformers, the model card, the Hugging Face Hub."""
