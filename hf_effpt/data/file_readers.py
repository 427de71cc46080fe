"""Readers of documents from one file: plain text, JSON lines, Parquet."""

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from hf_effpt.core.errors import EffptError, first_line
from hf_effpt.data.document_cuts import DocumentCut, cut_documents, guessed_cut

CHUNK_BYTES = 2**20  # read at a time
Reader = Callable[[], Iterator[str]]  # starts a pass over the documents
# Parts of a corpus: its reader, a function that hashes the contents, bytes if known.
Source = tuple[Reader, Callable[[], str], int | None]


def read_txt(path: Path, cut: DocumentCut) -> Iterator[str]:
    """Yields the documents that `cut` makes of the file, long ones in parts."""
    yield from cut_documents(_strings(path), cut)


def guess_cut(path: Path) -> DocumentCut:
    """The likely cut of a text file, by its beginning."""
    return guessed_cut(_strings(path))


def read_jsonl(path: Path, text_column: str) -> Iterator[str]:
    """Yields the string under `text_column` of each line's JSON object; `null` is an empty document."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise EffptError(
                f"{where}: not valid JSON ({reason}). A .jsonl file needs one object a line, like "
                f'{{"{text_column}": "..."}}; correct or remove this line.'
            ) from error
        if not isinstance(record, dict):
            raise EffptError(
                f"{where}: this is a JSON {type(record).__name__}, but each line must be an object like "
                f'{{"{text_column}": "..."}}.'
            )
        if text_column not in record:
            raise missing_column(where, text_column, list(record))
        text = record[text_column]
        if not isinstance(text, str | None):
            raise _not_text(where, text_column, type(text).__name__)
        yield _without_surrogates(text or "")


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


def check_text_column(where: str, schema: pa.Schema, text_column: str) -> None:
    """Raises an `EffptError` unless the table has a column of strings under that name."""
    if schema.names.count(text_column) > 1:
        raise EffptError(f"{where}: there are several columns {text_column!r}. Give the one of the text its own name.")
    if text_column not in schema.names:
        raise missing_column(where, text_column, schema.names)
    kind = schema.field(text_column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise _not_text(where, text_column, str(kind))


def _open_parquet(path: Path, text_column: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, buffer_size=CHUNK_BYTES)  # reads page by page
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(str(path), error) from error
    check_text_column(str(path), file.schema_arrow, text_column)
    return file


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file; errors of reading it in the block become an `EffptError`."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise EffptError(f"{path} cannot be read ({error.strerror or error}).") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines."""
    held: list[str] = []
    number = 1
    for string in _strings(path):
        held.append(string)
        if string.endswith("\n"):
            yield number, "".join(held)
            held, number = [], number + 1
    if held:
        yield number, "".join(held)


def _strings(path: Path) -> Iterator[str]:
    """Lines with their ends, without carriage returns; a line of over a megabyte comes in several strings."""
    decoder, offset, rest = codecs.getincrementaldecoder("utf-8")(), 0, ""
    with opened(path) as file:
        while True:
            data = file.read(CHUNK_BYTES)
            offset += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error, offset - len(error.object)) from error
            if offset == len(data):
                text = text.removeprefix("\ufeff")
            *lines, last = (rest + text).split("\n")
            yield from (line.removesuffix("\r") + "\n" for line in lines)
            if not data:
                break
            # A carriage return may belong to the line feed that comes next.
            rest = last if lines or last.endswith("\r") else ""
            if last and not rest:
                yield last
    if last:
        yield last


def _not_utf8(path: Path, error: UnicodeDecodeError, offset: int) -> EffptError:
    """Error for bytes that are no UTF-8; `offset` is that of the decoder's input in the file."""
    data: bytes = error.object
    wide = offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return EffptError(
        f"{path} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {offset + error.start} cannot be "
        f"decoded. Convert the file, for example: iconv -f {'UTF-16' if wide else 'WINDOWS-1252'} -t UTF-8 "
        f"{path.name} > utf8-{path.name}"
    )


def _without_surrogates(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON may spell and no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _unreadable(where: str, error: Exception) -> EffptError:
    return EffptError(
        f"{where} cannot be read as Parquet ({first_line(error)}). It may be damaged or cut short: copy it again."
    )


def _not_text(where: str, text_column: str, kind: str) -> EffptError:
    return EffptError(
        f"{where}: the column {text_column!r} holds {kind}, but the text must be strings. Name the column that holds "
        "the text with data.text_column."
    )


# Readers by suffix, for the kinds of file a folder may hold; `.txt` is read by `read_txt`.
READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {".jsonl": read_jsonl, ".parquet": read_parquet}
ENDINGS = (".txt", *READERS)
