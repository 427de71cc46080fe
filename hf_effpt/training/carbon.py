"""Carbon as codecarbon finds it, for `report_to: codecarbon`: without the network, and with one answer everywhere.

The stock callback asks the network where the machine stands and, without an answer, takes it for one in Quebec, whose
electricity is among the cleanest. Here the country is told.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainingArguments

from hf_effpt.core.errors import EffptError

from .timekeeping import Timekeeper

NAME = "codecarbon"


def country() -> str:
    """The country in codecarbon's own configuration, as three letters.

    Raises:
        EffptError: if codecarbon is missing, or its configuration names no country that it knows.
    """
    try:
        import codecarbon.core.config as config
        from codecarbon.input import DataSource
    except ImportError as error:
        raise EffptError(
            "`report_to` is or includes codecarbon, which is not installed: `pip install 'hf_effpt[energy]'`, or "
            "leave it out."
        ) from error
    logging.getLogger(NAME).setLevel(logging.ERROR)  # it speaks before it has read its own `log_level`
    code = config.get_hierarchical_config().get("country_iso_code")
    if not code or code.upper() not in DataSource().get_global_energy_mix_data():
        given = f"{code!r} is no country it knows" if code else "no country is given"
        raise EffptError(
            f"`report_to` is or includes codecarbon, which needs to know whose electricity is used, but {given}: set "
            "the environment variable CODECARBON_COUNTRY_ISO_CODE, or `country_iso_code` in .codecarbon.config, to "
            "three letters such as DEU, FRA or USA, or leave codecarbon out."
        )
    return code.upper()


@contextmanager
def without_stock_tracker(args: TrainingArguments) -> Iterator[None]:
    """Hides codecarbon from the stock Trainer, which would add its own callback."""
    reported = args.report_to
    args.report_to = [name for name in reported or () if name != NAME]
    try:
        yield
    finally:
        args.report_to = reported


@contextmanager
def tracking(args: TrainingArguments, timekeeper: Timekeeper) -> Iterator[None]:
    """Has codecarbon watch the block, if asked for; the rows of its `emissions.csv` are in the run folder.

    It watches the whole machine, and does not know of the pauses of our clock: its figures are for the whole of
    `train()`, with evaluation and saving, and they are kept also when training fails.
    """
    if NAME not in (args.report_to or ()) or args.local_process_index != 0:
        yield
        return
    where = country()
    import codecarbon

    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code=where, output_dir=str(args.output_dir), log_level="error"
    )
    begun = timekeeper.clock.steps
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()
        timekeeper.emissions = found(tracker, where, begun)


def found(tracker: Any, where: str, begun: int) -> dict[str, Any] | None:
    """The totals of a stopped tracker; none if it failed, since codecarbon keeps its own failures from a run."""
    data = getattr(tracker, "final_emissions_data", None)
    if data is None:
        return None
    return {
        "kwh": float(data.energy_consumed),
        "co2e_grams": 1e3 * float(data.emissions),
        "country": where,
        "since_step": begun,
    }
