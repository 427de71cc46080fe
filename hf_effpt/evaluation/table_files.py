"""Reader of table files: Parquet, JSON lines, CSV and TSV."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from hf_effpt.core.errors import EffptError


def read_table(path: Path) -> pa.Table:
    """Reads the table in a file; raises an `EffptError` if it is of another kind or damaged."""
    if path.suffix not in READERS:
        raise EffptError(f"{path} is no {', '.join(READERS)} file; convert it.")
    try:
        return READERS[path.suffix](path)
    except (pa.ArrowException, OSError) as error:
        raise EffptError(f"{path.absolute()} cannot be read as {path.suffix[1:]}: {error}") from error


def _read_separated(separator: str, quote: str | bool) -> Callable[[Path], pa.Table]:
    return lambda path: pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, quote_char=quote, newlines_in_values=bool(quote)),
    )


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": pq.read_table,
    ".jsonl": lambda path: pyarrow.json.read_json(path),
    ".csv": _read_separated(",", '"'),
    # Without quoting: GLUE's own files contain unpaired quotation marks, which would swallow lines.
    ".tsv": _read_separated("\t", False),
}
