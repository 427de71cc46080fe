"""Dictionary of notes: a submodule of the backbone that reads and writes through hooks.

B batch, L row length, D hidden size, V vocabulary, M entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_effpt.core.anatomy import embedding_norm_of, generator_of
from hf_effpt.core.depth import stack_of
from hf_effpt.core.metrics import accumulator_of
from hf_effpt.core.precision import KeepsPrecision
from hf_effpt.core.processes import gather

from .lookup import SPECIAL, Occurrences, Words, documents_in, entries_of, occurrences_of, words_of
from .writing import take_in, window_means

INIT_STD = 0.02  # as of BERT's embeddings; the paper gives none


@dataclass
class NoteInputs:
    """Words with a note in the rows of the present forward pass."""

    entry_BL: Tensor
    words: Words
    found: Occurrences
    sums: dict[str, Tensor]


class NoteDictionary(KeepsPrecision):
    """Notes of rare words, as [`TNF`] sets them: read at the input of the backbone, and written from its output."""

    vectors: Tensor  # notes, fp32 of shape `(entries, hidden_size)`
    keys: Tensor  # rising int64 hashes of the words
    kinds: Tensor  # kind and spelling of each token, of shape `(vocab_size,)`; uint8 of older versions, else int64

    def __init__(self, settings: Any, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        entries = settings.entries or 0
        self.register_buffer("vectors", torch.zeros(entries, hidden_size, dtype=torch.float32))
        self.register_buffer("keys", torch.zeros(entries, dtype=torch.int64))
        self.register_buffer("kinds", torch.full((vocab_size,), SPECIAL))
        self.k, self.gamma, self.weight = settings.k, settings.gamma, settings.weight
        self.matches = settings.scale == "match"
        self.packed = settings.use == "pretraining"  # else its rows are examples of a task
        self.reads_always, self.writes = not self.packed, settings.use != "frozen"
        self._reading: NoteInputs | None = None
        self._handles: list[Any] = []

    def extra_repr(self) -> str:
        return f"{len(self.keys)} entries of {self.vectors.shape[1]}, k={self.k}"

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Initialises all vectors, with an own generator."""
        generator = torch.Generator().manual_seed(seed)
        self.vectors.copy_(torch.empty(self.vectors.shape).normal_(0.0, INIT_STD, generator=generator))

    def resize_vocabulary(self, size: int) -> None:
        """Makes tokens of a longer vocabulary no text: no word that was counted has one."""
        self.kinds = nn.functional.pad(self.kinds, (0, size - len(self.kinds)), value=SPECIAL)

    def attach(self, backbone: Any) -> None:
        """Registers the dictionary as the submodule `notes` of `backbone`, and its hooks.

        The hooks are bound methods, so that a deep copy of the model calls those of the copy.
        """
        backbone.notes = self
        if hasattr(backbone, "embeddings_project"):  # the sum of the embeddings is narrower than a note
            blend = backbone.embeddings_project.register_forward_hook(self.blend_projection)
        else:
            blend = embedding_norm_of(backbone).register_forward_pre_hook(self.blend_sum)
        self._handles = [
            blend,
            backbone.register_forward_pre_hook(self.begin, with_kwargs=True),
            backbone.register_forward_hook(self.finish, always_call=True),  # also when the forward raises
        ]
        stack_of(backbone).read_whole = self.writes

    def detach(self, backbone: Any) -> None:
        """Removes hooks and dictionary from `backbone`."""
        for handle in self._handles:
            handle.remove()
        stack_of(backbone).read_whole = False
        del backbone.notes

    def begin(self, backbone: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook: looks up the token ids, unless a collator has already done so and passes `note_ids`."""
        kwargs = dict(kwargs)
        note_ids = kwargs.pop("note_ids", None)
        if generator_of(backbone) is not None:
            note_ids = None  # found in the masked ids, and the backbone reads what the generator made of them
        ids_BL = args[0] if args else kwargs.get("input_ids")
        if ids_BL is not None and (backbone.training or self.reads_always):
            mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
            documents_BL = documents_in(mask, kwargs.get("position_ids"))
            words = words_of(ids_BL, self.kinds, documents_BL, self.packed)
            entry_BL = entries_of(ids_BL, words, self.keys) if note_ids is None else note_ids
            found, hits = occurrences_of(entry_BL, words)
            at_start_BL = words.first_BL == torch.arange(ids_BL.shape[1], device=ids_BL.device)
            sums = {"tnf_hits": hits, "tnf_words": (words.whole_BL & at_start_BL).sum()}
            sums["tnf_overflow"] = (hits - len(found.used_C)).clamp(min=0)
            self._reading = NoteInputs(entry_BL, words, found, sums)
        return args, kwargs

    def blend_sum(self, norm: nn.Module, args: tuple) -> tuple[Tensor, ...] | None:
        """Pre-hook of the LayerNorm of the embeddings: blends notes into its input.

        Another encoder may share that LayerNorm; notes are blended in the backbone's own forward pass only.
        """
        return None if self._reading is None else (self.blend(args[0]), *args[1:])

    def blend_projection(self, projection: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Hook of the projection of the embeddings: blends notes into its output."""
        return None if self._reading is None else self.blend(output)

    def blend(self, embedded_BLD: Tensor) -> Tensor:
        """Returns (1 - weight) * embedding + weight * note at words with a note; other embeddings are unchanged."""
        reading = self._reading
        assert reading is not None
        with torch.no_grad():
            notes_BLD = self.vectors[reading.entry_BL.clamp(min=0)]
            if self.matches:
                sizes = [x.float().norm(dim=-1, keepdim=True) for x in (embedded_BLD, notes_BLD)]
                notes_BLD *= sizes[0] / sizes[1].clamp(min=1e-12)
            found = reading.found
            at_C = found.row_C * reading.entry_BL.shape[1] + found.first_C
            ours_C, sum_C = (x.flatten(0, 1)[at_C].float().norm(dim=1) for x in (notes_BLD, embedded_BLD))
            ratio_C = self.weight * ours_C / ((1 - self.weight) * sum_C).clamp(min=1e-12)
            reading.sums["tnf_ratio"] = torch.where(found.used_C, ratio_C, 0.0).sum()
            reading.sums["tnf_read"] = found.used_C.sum()
        mixed_BLD = torch.lerp(embedded_BLD, notes_BLD.to(embedded_BLD.dtype), self.weight)
        return torch.where((reading.entry_BL >= 0)[..., None], mixed_BLD, embedded_BLD)

    def finish(self, backbone: Any, args: tuple, output: Any) -> None:
        """Forward hook: writes notes from the outputs of the backbone, in training only."""
        reading, self._reading = self._reading, None
        if reading is None or output is None or not backbone.training:
            return
        if self.writes:
            reading.sums["tnf_drift"], reading.sums["tnf_written"] = self.write(output[0], reading)
        accumulator_of(backbone).add(**reading.sums)

    @torch.no_grad()
    def write(self, hidden_BLD: Tensor, reading: NoteInputs) -> tuple[Tensor, Tensor]:
        """Updates the vectors with a micro-batch of all processes; returns the sum of the drifts and their number."""
        found = reading.found
        notes_CD = window_means(hidden_BLD, found, reading.words, self.k)
        # Those of all processes, ordered by rank; batches have the same shape in all of them.
        used_C = gather(found.used_C.byte()).bool()
        return take_in(self.vectors, gather(found.entry_C), used_C, gather(notes_CD), self.gamma)
