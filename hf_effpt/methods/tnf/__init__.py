"""Taking notes on the fly for rare words (Wu et al., 2021).

method       `TNF`: the settings, and the hooks of a run
counting     counts of the words of the training rows, and choice of the rare ones
dictionary   `NoteDictionary`: the notes, and the hooks that read and write them
lookup       words with a note in rows of token ids
writing      means of the windows around words, and update of the notes
collator     `DataCollatorForNotes`: words looked up while batches are made
"""

from .collator import DataCollatorForNotes
from .method import TNF

__all__ = ["TNF", "DataCollatorForNotes"]
