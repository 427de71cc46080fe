"""Tables in files of the kinds that tasks and minimal pairs come in."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from hf_effpt.core.errors import EffptError


def read_table(path: Path) -> pa.Table:
    """The table in a file.

    Raises:
        EffptError: it is of another kind, or cannot be read.
    """
    if path.suffix not in READERS:
        raise EffptError(f"{path} is no {', '.join(READERS)} file; convert it.")
    try:
        return READERS[path.suffix](path)
    except (pa.ArrowException, OSError) as error:
        raise EffptError(f"{path.absolute()} cannot be read as {path.suffix[1:]}: {error}") from error


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or else its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _read_separated(separator: str, quote: str | bool) -> Callable[[Path], pa.Table]:
    return lambda path: pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, quote_char=quote, newlines_in_values=bool(quote)),
    )


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": pq.read_table,
    ".jsonl": lambda path: pyarrow.json.read_json(path),
    ".csv": _read_separated(",", '"'),
    # GLUE's own files have single quotation marks in them, which would swallow lines.
    ".tsv": _read_separated("\t", False),
}
