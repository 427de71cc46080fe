from .collator import DataCollatorForNotes
from .method import TNF

__all__ = ["TNF", "DataCollatorForNotes"]
