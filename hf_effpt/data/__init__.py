"""From text to masked batches.

cache                 folder of prepared data; builds that arrive whole or not at all
corpus                any source of text as documents, with a fingerprint
  file_readers        documents of .txt, .jsonl and .parquet files
  datasets_sources    documents of saved `datasets` folders and the Hub
  pydoc, docstrings   `builtin:pydoc`, the documentation of the installed packages
document_selection    removal of duplicate documents, choice by loss
tokenizer_training    `train_tokenizer`
tokenizer_report      fertility and other statistics of a tokenizer
vocabulary            special tokens, tokens that continue words
encoding              tokenisation of many documents at once
packing               `pack`: a corpus as fixed-length rows on disk
  row_builders        rows from documents
  row_writer          rows to an Arrow file
packed_rows           batched reading of those rows
masking               `DataCollatorForMaskedLM`
training_text         training rows as methods see them
"""

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
