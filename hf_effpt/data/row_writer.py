"""Writer of packed rows to an Arrow file, which counts rows and tokens."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value

from hf_effpt.data.row_builders import IsolatedRows, StreamRows

# Size of a block of rows: large enough that few blocks have to be searched for a row.
BLOCK_BYTES = 32 * 2**20


class RowWriter:
    """Writes the rows of the documents it is given, as `datasets` stores them.

    `builder` makes rows from documents; the Arrow file at `path` is complete when the `with` block ends.
    """

    def __init__(self, path: Path, builder: StreamRows | IsolatedRows):
        self.rows = self.tokens = 0
        self._builder, self._path = builder, path
        self._waiting: list[dict[str, np.ndarray]] = []
        self._waiting_bytes = 0

    def __enter__(self) -> "RowWriter":
        columns = self._builder.finish()
        self._schema = Features(
            {name: List(Value(str(rows.dtype)), length=self._builder.length) for name, rows in columns.items()}
        ).arrow_schema
        self._file = pa.OSFile(str(self._path), "wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            self._keep(self._builder.finish())
            self._flush()
            self._stream.close()
        self._file.close()

    def add(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        """Adds the next tokens of the documents; documents end after `ends` of them, and the last one may go on."""
        self._keep(self._builder.add(tokens, ends))
        if self._waiting_bytes >= BLOCK_BYTES:
            self._flush()

    def _keep(self, columns: dict[str, np.ndarray]) -> None:
        input_ids = columns["input_ids"]
        self.rows += len(input_ids)
        self.tokens += int(np.count_nonzero(columns["document_ids"])) if "document_ids" in columns else input_ids.size
        self._waiting.append(columns)
        self._waiting_bytes += input_ids.nbytes

    def _flush(self) -> None:
        if self._waiting_bytes:
            arrays = []
            for field in self._schema:
                values = np.concatenate([columns[field.name] for columns in self._waiting]).reshape(-1)
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type))
            self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._waiting, self._waiting_bytes = [], 0
