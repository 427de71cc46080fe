"""Where the minimal pairs of BLiMP are found."""

import logging
from pathlib import Path

from datasets import Dataset, concatenate_datasets, get_dataset_config_names, load_dataset

from hf_effpt.core.errors import EffptError

logger = logging.getLogger(__name__)

HUB = "nyu-mll/blimp"


def load_pairs(data: str | Path | None) -> Dataset:
    """The pairs of all paradigms.

    Args:
        data (`str` or `Path`, *optional*): a folder with `blimp/` (or itself) of Parquet files, or of the JSON lines
            that BLiMP is published as; or `"hub"` to download them.

    Raises:
        EffptError: if there are none.
    """
    if str(data) == "hub":
        logger.warning("downloading %s from the Hub", HUB)
        try:
            names = get_dataset_config_names(HUB)
            return concatenate_datasets([load_dataset(HUB, name, split="train") for name in names])
        except (OSError, ValueError) as error:
            raise EffptError(f"{HUB} cannot be downloaded ({str(error).splitlines()[0]}); give a folder.") from error
    folders = [] if data is None else [Path(data) / "blimp", Path(data)]
    for folder in folders:
        for ending, kind in ((".parquet", "parquet"), (".jsonl", "json")):
            files = sorted(str(path) for path in folder.glob(f"*{ending}"))
            if files:
                return load_dataset(kind, data_files=files, split="train")
    raise EffptError(
        f"BLiMP needs data: {'no folder is given' if data is None else f'{data} has no blimp/*.parquet or *.jsonl'}. "
        'Give data=FOLDER that has them (github.com/alexwarstadt/blimp, folder `data`), or data="hub" to download '
        f"{HUB}."
    )
