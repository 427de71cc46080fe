"""Loading of BLiMP's minimal pairs from a folder or the Hub."""

import logging
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, concatenate_datasets, get_dataset_config_names, load_dataset

from hf_effpt.core.errors import EffptError, first_line

from .blimp import COLUMNS, missing_columns
from .table_files import read_table

logger = logging.getLogger(__name__)

HUB = "nyu-mll/blimp"


def load_pairs(data: str | Path | None) -> Dataset:
    """Loads the pairs of all paradigms.

    `data` is a folder with `blimp/` (or that folder) of Parquet files, or of the JSON lines that BLiMP is published
    as; or `"hub"` to download them. Raises an `EffptError` if there are no pairs, or they cannot be read.
    """
    if str(data) == "hub":
        logger.warning("downloading %s from the Hub", HUB)
        try:
            parts = [load_dataset(HUB, name, split="train") for name in get_dataset_config_names(HUB)]
        except (OSError, ValueError, RuntimeError) as error:
            raise EffptError(f"{HUB} cannot be downloaded ({first_line(error)}); give a folder.") from error
        return concatenate_datasets([part.select_columns(list(COLUMNS)) for part in parts])
    folders = [] if data is None else [Path(data) / "blimp", Path(data)]
    for folder in folders:
        for ending in (".parquet", ".jsonl"):
            if files := sorted(folder.glob(f"*{ending}")):
                return Dataset(pa.concat_tables([_pairs_in(path) for path in files]))
    raise EffptError(
        f"BLiMP needs data: {'no folder is given' if data is None else f'{data} has no blimp/*.parquet or *.jsonl'}. "
        f'Give data=FOLDER (github.com/alexwarstadt/blimp, folder `data`), or data="hub" to download {HUB}.'
    )


def _pairs_in(path: Path) -> pa.Table:
    """The columns needed, as strings; published paradigms have further ones."""
    table = read_table(path)
    if missing := missing_columns(table.column_names):
        raise EffptError(f"{path.absolute()}: {missing}")
    try:
        return table.select(COLUMNS).cast(pa.schema([(name, pa.string()) for name in COLUMNS]))
    except pa.ArrowException as error:
        raise EffptError(f"{path.absolute()}: the columns {', '.join(COLUMNS)} must be texts: {error}") from error
