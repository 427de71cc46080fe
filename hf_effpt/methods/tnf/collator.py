"""A data collator that looks notes up, so that data workers do it while the device trains."""

from typing import Any

from torch import Tensor

from .dictionary import NoteDictionary
from .lookup import entries_of, words_of


class DataCollatorForNotes:
    """
    Wraps a masking collator and adds to its batches which tokens belong to a word with a note.

    The backbone then does not look up for itself, and comes to the same. For models that read the batch's own
    `input_ids`: a discriminator is given others, which no collator can know. Other attributes are those of the
    collator inside.

    Args:
        collator (`Callable`): Makes a batch with `input_ids`, corrupted if they are to be.
        notes ([`NoteDictionary`]): The dictionary of the model, `model.backbone.notes`; its keys are copied.
    """

    def __init__(self, collator: Any, notes: NoteDictionary) -> None:
        self.collator = collator
        self.keys: Tensor = notes.keys.cpu().clone()
        self.kinds: Tensor = notes.kinds.cpu().clone()

    def __call__(self, examples: Any) -> dict[str, Tensor]:
        """
        Builds a batch.

        Returns:
            The batch of the collator inside and `note_ids`, int64 of shape `(batch_size, sequence_length)`: the entry
            at every token of a word with a note, -1 elsewhere.
        """
        batch = self.collator(examples)
        ids_BL = batch["input_ids"]
        return {**batch, "note_ids": entries_of(ids_BL, words_of(ids_BL, self.kinds), self.keys)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "collator" not in self.__dict__:  # while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.collator, name)
