"""From text to masked batches.

cache                 folder of prepared data; builds that arrive whole or not at all
corpus                any source of text as documents, with a fingerprint
  mixture             several corpora as one, maybe with weights
  text_files          files of a folder, by splits
  file_readers        documents of files, by their endings
    text_stream       lines of files, packed or not
    json_readers      .jsonl and .json
    table_readers     .csv and .parquet
  document_cuts       documents of a text file, and a guess of how it is cut
  datasets_sources    documents of saved `datasets` folders and the Hub
  pydoc, docstrings   `builtin:pydoc`, the documentation of the installed packages
long_documents        parts of long documents
document_meter        sizes of documents, and keys that equal ones share
document_selection    removal of duplicate documents, choice by loss
text_sample           pieces from all over a corpus
tokenizer_training    `train_tokenizer`
added_tokens          words of a domain, added to a vocabulary
tokenizer_report      fertility and other statistics of a tokenizer
vocabulary            special tokens
token_frequencies     shares of tokens in packed rows
cooccurrence          word vectors from the tokens near each one
words                 tokens that continue or close words
encoding              tokenisation of many documents at once
holding_out           text that is held out, and training documents that equal it
packing               `pack`: a corpus as fixed-length rows on disk
  token_file          tokens of a corpus on disk, from one pass over its text
  row_builders        rows from documents
  row_writer          rows to an Arrow file
shards                rows in shards, made by many processes or machines
packed_rows           batched reading of those rows
masking               `DataCollatorForMaskedLM`
next_tokens           batches for causal language modelling
training_text         training rows as methods see them
"""

from .corpus import Corpus as Corpus
from .corpus import corpus_of as corpus_of
from .corpus import open_corpus as open_corpus
from .masking import DataCollatorForMaskedLM as DataCollatorForMaskedLM
from .packing import PackedRows as PackedRows
from .packing import facts as facts
from .packing import pack as pack
from .pydoc import labelled_docstrings as labelled_docstrings
from .shards.opening import open_rows as open_rows
from .shards.packing import pack_shards as pack_shards
from .tokenizer_report import TokenizerReport as TokenizerReport
from .tokenizer_report import tokenizer_report as tokenizer_report
from .tokenizer_training import train_tokenizer as train_tokenizer
