"""`builtin:pydoc`: the English documentation of the installed Python packages, a corpus every machine has."""

import gc
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import distributions
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils import tqdm

from hf_effpt.core.errors import EffptError
from hf_effpt.data.cache import build_once, cache_folder, content_hash
from hf_effpt.data.docstrings import Prose, module_docstrings
from hf_effpt.data.file_readers import Source

# To be raised when what is extracted from the same files changes.
FORMAT = 1
# Test suites hold little prose, vendored copies and caches none that is not found elsewhere.
SKIPPED = {"test", "tests", "__pycache__", "_vendor", "vendored", "site-packages", "dist-packages", "idlelib"}
TABLE = "docstrings.parquet"
SCHEMA = pa.schema([("package", pa.string()), ("module", pa.string()), ("text", pa.string())])


def open_pydoc(cache_dir: str | os.PathLike | None = None) -> Source:
    """Reader, fingerprint and size; a document is one module's docstrings, joined by blank lines."""
    path = _extracted(cache_dir)

    def read() -> Iterator[str]:
        for _, rows in groupby(_rows(path), key=lambda row: row["module"]):
            yield "\n\n".join(row["text"] for row in rows)

    num_bytes = sum(len(row["text"].encode()) for row in _rows(path))
    return read, lambda: content_hash([path], cache_dir), num_bytes


def labelled_docstrings() -> Iterator[tuple[str, str]]:
    """Docstrings of `builtin:pydoc` one by one, each with the name of its top-level package."""
    for row in _rows(_extracted()):
        yield row["text"], row["package"]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=4096):
            yield from batch.to_pylist()


def _extracted(cache_dir: str | os.PathLike | None = None) -> Path:
    """Cached table of docstrings; its key is the installed packages and the number of source files."""
    sources = _sources()
    installed = sorted({f"{distribution.name}=={distribution.version}" for distribution in distributions()})
    key = hashlib.sha256(repr((FORMAT, sys.version, installed, len(sources))).encode()).hexdigest()[:16]
    folder = build_once(
        cache_folder(cache_dir) / "pydoc" / key,
        lambda target: _extract(sources, target),
        lambda target: pq.read_metadata(target / TABLE),
    )
    return folder / TABLE


def _extract(sources: list[tuple[str, str, Path]], target: Path) -> None:
    prose, rows = Prose(), []
    bar = tqdm(sources, desc="Reading installed documentation", unit=" files", disable=None)
    collects = gc.isenabled()
    gc.disable()  # searching millions of syntax tree nodes for cycles takes longer than parsing
    try:
        for package, module, path in bar:
            for docstring in module_docstrings(path):
                if text := prose.clean(docstring):
                    rows.append({"package": package, "module": module, "text": text})
    finally:
        if collects:
            gc.enable()
    if not rows:
        raise EffptError(
            "builtin:pydoc found no English docstring in the installed packages (sources stripped?). Pass your own "
            "text as data.dataset."
        )
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), target / TABLE, compression="zstd")


def _sources() -> list[tuple[str, str, Path]]:
    """(top-level package, module, file) of every installed source file, sorted by module."""
    roots = [sysconfig.get_path("stdlib")]
    roots += [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    found: dict[str, tuple[str, str, Path]] = {}
    for root in dict.fromkeys(os.path.realpath(root) for root in roots):
        for folder, subfolders, files in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if name.isidentifier() and name not in SKIPPED)
            for file in files:
                if not file.endswith(".py"):
                    continue
                parts = Path(folder, file[:-3]).relative_to(root).parts
                module = ".".join(parts)
                found.setdefault(module, (parts[0], module, Path(folder, file)))
    return [found[module] for module in sorted(found)]
