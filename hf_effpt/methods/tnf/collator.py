"""Data collator that looks notes up, so that data workers do it while the device trains."""

from typing import Any

from torch import Tensor

from .dictionary import NoteDictionary
from .lookup import documents_in, entries_of, words_of


class DataCollatorForNotes:
    """Masking collator that adds the note of each token to its batches; results are those of a look-up in the model.

    It is for models that read the batch's own `input_ids`, not for a discriminator, which reads a generator's. Other
    attributes are those of the inner collator.

    Args:
        collator (`Callable`): inner collator; makes a batch with `input_ids`, masked already.
        notes ([`NoteDictionary`]): dictionary of the model, `model.backbone.notes`; its keys are copied.
    """

    def __init__(self, collator: Any, notes: NoteDictionary) -> None:
        self.collator = collator
        self.keys: Tensor = notes.keys.cpu().clone()
        self.kinds: Tensor = notes.kinds.cpu().clone()
        self.packed: bool = notes.packed

    def __call__(self, examples: Any) -> dict[str, Tensor]:
        """Returns the batch of the inner collator with `note_ids`.

        They are int64 of shape `(batch_size, sequence_length)`: the entry of the token's word, -1 if it has none.
        """
        batch = self.collator(examples)
        ids_BL, documents_BL = batch["input_ids"], batch.get("document_ids")
        if documents_BL is None:
            documents_BL = documents_in(batch.get("attention_mask"))
        words = words_of(ids_BL, self.kinds, documents_BL, self.packed)
        return {**batch, "note_ids": entries_of(ids_BL, words, self.keys)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "collator" not in self.__dict__:  # while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.collator, name)
