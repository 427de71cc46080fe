"""Lines of UTF-8 text in files, packed or not, read a megabyte at a time."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from hf_effpt.core.errors import EffptError

CHUNK_BYTES = 2**20  # read at a time
PACKED = (".gz", ".zst")
# Longest record of .jsonl, .json or .csv; reading one takes up to 13 bytes of memory a character.
RECORD_CHARACTERS = 2**27


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file, unpacked if its ending says that it is packed; errors of reading it become an `EffptError`."""
    packed = path.suffix.lower()
    try:
        if packed == ".gz":
            with gzip.open(path, "rb") as file:
                yield file
        elif packed == ".zst":
            with path.open("rb") as raw, pa.input_stream(raw, compression="zstd") as file:
                yield file
        else:
            with path.open("rb") as file:
                yield file
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        hint = " It may be damaged or cut short: copy it again." if packed in PACKED else ""
        raise EffptError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).{hint}") from error


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines; raises an `EffptError` for one that is too long to be held in memory."""
    held: list[str] = []
    number, size = 1, 0
    for string in strings_of(path):
        held.append(string)
        size += len(string)
        if size > RECORD_CHARACTERS:
            raise too_long(f"{path}, line {number}")
        if string.endswith("\n"):
            line = held[0] if len(held) == 1 else "".join(held)
            held.clear()  # not held twice while it is used
            yield number, line
            number, size = number + 1, 0
    if held:
        yield number, "".join(held)


def too_long(where: str) -> EffptError:
    """Error for a record, which is read whole, of more than [`RECORD_CHARACTERS`]."""
    return EffptError(
        f"{where}: this record has more than {RECORD_CHARACTERS:,} characters, but is held in memory whole. Cut it "
        "into several, or write its text to a .txt file, of which documents may have any length."
    )


def strings_of(path: Path) -> Iterator[str]:
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
