"""From text to masked batches: corpus, tokenizer, packed rows, collator."""

from hf_effpt.data.corpus import Corpus, corpus_of, open_corpus
from hf_effpt.data.masking import DataCollatorForMaskedLM
from hf_effpt.data.packing import PackedRows, facts, pack
from hf_effpt.data.pydoc import labelled_docstrings
from hf_effpt.data.tokenizer_report import TokenizerReport, tokenizer_report
from hf_effpt.data.tokenizer_training import train_tokenizer

__all__ = [
    "Corpus",
    "DataCollatorForMaskedLM",
    "PackedRows",
    "TokenizerReport",
    "corpus_of",
    "facts",
    "labelled_docstrings",
    "open_corpus",
    "pack",
    "tokenizer_report",
    "train_tokenizer",
]
