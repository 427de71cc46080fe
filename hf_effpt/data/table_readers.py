"""Readers of documents from tables: CSV and Parquet."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.data.text_stream import CHUNK_BYTES, RECORD_CHARACTERS, lines_of, too_long


def read_csv(path: Path, text_column: str) -> Iterator[str]:
    """Yields the column `text_column` of comma-separated values, whose first row names the columns."""
    csv.field_size_limit(max(csv.field_size_limit(), RECORD_CHARACTERS))  # 131,072 are too few for documents
    rows = csv.reader((line for _, line in lines_of(path)), strict=True)
    try:
        columns = next(rows, [])
        check_one_column(str(path), columns, text_column)
        place = columns.index(text_column)
        for row in rows:
            if row and len(row) != len(columns):
                raise EffptError(
                    f"{path}, line {rows.line_num}: this row has {len(row)} columns, but the first row names "
                    f'{len(columns)}. Text with a comma or a line break needs quotes, "like, this".'
                )
            if row:
                yield row[place]
    except csv.Error as error:
        if "field limit" in str(error):
            raise too_long(f"{path}, line {rows.line_num}") from error
        raise EffptError(f"{path}, line {rows.line_num}: not valid CSV ({error}); correct it there.") from error


def read_parquet(path: Path, text_column: str) -> Iterator[str]:
    """Yields the strings of the column `text_column`; null is an empty document."""
    with _open_parquet(path, text_column) as file:
        row = 0
        try:
            # So many rows that a batch of long documents is small too.
            size = parquet_text_bytes(path, text_column) // max(1, file.metadata.num_rows)
            for batch in file.iter_batches(max(1, min(1024, CHUNK_BYTES // max(1, size))), columns=[text_column]):
                for text in batch.column(0):
                    row += 1
                    yield text.as_py() or ""
        except UnicodeDecodeError as error:
            raise EffptError(
                f"{path}, row {row:,}: not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {error.start} "
                "cannot be decoded. Write the file again with text in that column."
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(f"{path}, after row {row:,},", error) from error


def parquet_text_bytes(path: Path, text_column: str) -> int:
    """Bytes of text in the column, estimated from the file's footer."""
    with _open_parquet(path, text_column) as file:
        leaves = [file.schema.column(index).path for index in range(len(file.schema))]
        groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
        return sum(group.column(leaves.index(text_column)).total_uncompressed_size for group in groups)


def missing_column(where: str, text_column: str, columns: list[str]) -> EffptError:
    """Error for data without that column."""
    return EffptError(
        f"{where}: there is no column {text_column!r}; the columns are {', '.join(map(repr, columns)) or 'none'}. "
        "Name the one that holds the text with data.text_column (text_column=... in Python)."
    )


def check_one_column(where: str, columns: list[str], text_column: str) -> None:
    """Raises an `EffptError` unless exactly one column has that name."""
    if columns.count(text_column) > 1:
        raise EffptError(f"{where}: there are several columns {text_column!r}. Give the one of the text its own name.")
    if text_column not in columns:
        raise missing_column(where, text_column, columns)


def check_text_column(where: str, schema: pa.Schema, text_column: str) -> None:
    """Raises an `EffptError` unless the table has a column of strings under that name."""
    check_one_column(where, schema.names, text_column)
    kind = schema.field(text_column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise not_text(where, text_column, str(kind))


def _open_parquet(path: Path, text_column: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, buffer_size=CHUNK_BYTES)  # reads page by page
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(str(path), error) from error
    check_text_column(str(path), file.schema_arrow, text_column)
    return file


def _unreadable(where: str, error: Exception) -> EffptError:
    return EffptError(
        f"{where} cannot be read as Parquet ({first_line(error)}). It may be damaged or cut short: copy it again."
    )


def not_text(where: str, text_column: str, kind: str) -> EffptError:
    """Error for a column of that name that does not hold text."""
    return EffptError(
        f"{where}: the column {text_column!r} holds {kind}, but the text must be strings. Name the column that holds "
        "the text with data.text_column."
    )
