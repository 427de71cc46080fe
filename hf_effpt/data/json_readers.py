"""Readers of documents from JSON: one object a line, or a file of objects or of one array of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_effpt.core.errors import EffptError
from hf_effpt.data.table_readers import missing_column, not_text
from hf_effpt.data.text_stream import CHUNK_BYTES, RECORD_CHARACTERS, lines_of, strings_of, too_long

_SPACE = re.compile(r"\s*")


def read_jsonl(path: Path, text_column: str) -> Iterator[str]:
    """Yields the string under `text_column` of each line's JSON object; `null` is an empty document."""
    for number, line in lines_of(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EffptError(
                f"{where}: not valid JSON ({_reason(error)}). A .jsonl file needs one object a line, like "
                f'{{"{text_column}": "..."}}; correct or remove this line.'
            ) from error
        yield _text_in(record, where, text_column)


def read_json(path: Path, text_column: str) -> Iterator[str]:
    """Yields the string under `text_column` of each object, in an array or one after another."""
    for number, record in enumerate(_values(path), start=1):
        yield _text_in(record, f"{path}, record {number}", text_column)


def _text_in(record: Any, where: str, text_column: str) -> str:
    if not isinstance(record, dict):
        raise EffptError(
            f"{where}: this is a JSON {type(record).__name__}, but each record must be an object like "
            f'{{"{text_column}": "..."}}.'
        )
    if text_column not in record:
        raise missing_column(where, text_column, list(record))
    text = record[text_column]
    if not isinstance(text, str | None):
        raise not_text(where, text_column, type(text).__name__)
    return _without_surrogates(text or "")


def _values(path: Path) -> Iterator[Any]:
    """Values of a file, or of the one array in it, of which only some are in memory."""
    decode, strings = json.JSONDecoder().raw_decode, strings_of(path)
    buffer, place, needed, ended, number = "", 0, 1, False, 0
    # In an array comes its `first` value or end, then `next` a comma, with another value after it, or the `end`.
    state = "start"
    while True:
        place = _SPACE.match(buffer, place).end()
        while not ended and len(buffer) - place < needed:
            buffer, ended = _longer(buffer[place:], strings, max(needed, CHUNK_BYTES))
            place = _SPACE.match(buffer).end()
        sign = buffer[place : place + 1]
        if state == "start" and sign == "[":
            state, place = "first", place + 1
        elif state in ("first", "next") and sign == "]":
            state, place = "end", place + 1
        elif state == "next" and sign == ",":
            state, place = "value", place + 1
        elif not sign and state in ("start", "values", "end"):
            return
        elif not sign or state in ("next", "end"):
            raise _invalid(path, number, f"{sign!r} where it must go on or end" if sign else "the array is not closed")
        else:
            try:
                value, place = decode(buffer, place)
            except (ValueError, RecursionError) as error:
                if not ended and _is_cut_off(error, len(buffer)):
                    needed = 2 * (len(buffer) - place)
                    if needed > 2 * RECORD_CHARACTERS:
                        raise too_long(f"{path}, record {number + 1}") from error
                    continue
                raise _invalid(path, number, _reason(error)) from error
            yield value
            number, needed = number + 1, 1
            state = "values" if state in ("start", "values") else "next"


def _longer(buffer: str, strings: Iterator[str], size: int) -> tuple[str, bool]:
    """A buffer with more strings, of at least that size, and `True` if there are no more."""
    parts, held = [buffer], len(buffer)
    for string in strings:
        parts.append(string)
        held += len(string)
        if held >= size:
            return "".join(parts), False
    return "".join(parts), True


def _is_cut_off(error: Exception, length: int) -> bool:
    """`True` if JSON is wrong where text of this length ends, so that more of it may put it right."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - 16


def _invalid(path: Path, number: int, reason: str) -> EffptError:
    return EffptError(
        f"{path}, after record {number}: not valid JSON ({reason}). A .json file needs an array of objects, or one "
        "object after another; correct it there."
    )


def _reason(error: Exception) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _without_surrogates(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON may spell and no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
