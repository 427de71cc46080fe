"""Where the minimal pairs of BLiMP are found."""

import logging
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, concatenate_datasets, get_dataset_config_names, load_dataset

from hf_effpt.core.errors import EffptError

from .blimp import COLUMNS, missing_columns
from .table_files import first_line, read_table

logger = logging.getLogger(__name__)

HUB = "nyu-mll/blimp"


def load_pairs(data: str | Path | None) -> Dataset:
    """The pairs of all paradigms.

    Args:
        data (`str` or `Path`, *optional*): a folder with `blimp/` (or itself) of Parquet files, or of the JSON lines
            that BLiMP is published as; or `"hub"` to download them.

    Raises:
        EffptError: if there are none, or they cannot be read.
    """
    if str(data) == "hub":
        logger.warning("downloading %s from the Hub", HUB)
        try:
            names = get_dataset_config_names(HUB)
            parts = [load_dataset(HUB, name, split="train") for name in names]
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
        'Give data=FOLDER that has them (github.com/alexwarstadt/blimp, folder `data`), or data="hub" to download '
        f"{HUB}."
    )


def _pairs_in(path: Path) -> pa.Table:
    """The columns that are needed, as texts; each paradigm as published has others of its own besides."""
    table = read_table(path)
    if missing := missing_columns(table.column_names):
        raise EffptError(f"{path.absolute()}: {missing}")
    try:
        return table.select(COLUMNS).cast(pa.schema([(name, pa.string()) for name in COLUMNS]))
    except pa.ArrowException as error:
        raise EffptError(f"{path.absolute()}: the columns {', '.join(COLUMNS)} must be texts: {error}") from error
