"""Carbon measured by codecarbon, for `report_to: codecarbon`, offline and with the country given by the user.

The stock callback looks the country up online and falls back to Quebec, whose electricity is among the cleanest.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments

from hf_effpt.core.errors import EffptError

from .timekeeping import Timekeeper

NAME = "codecarbon"


def country() -> str:
    """Returns the country in codecarbon's configuration, as three letters.

    Raises `EffptError` if codecarbon is missing, or its configuration names no country that it knows.
    """
    try:
        import codecarbon.core.config as config
        from codecarbon.input import DataSource
    except ImportError as error:
        raise EffptError(
            "`report_to` is or includes codecarbon, which is not installed: `pip install 'hf_effpt[energy]'`, or "
            "leave it out."
        ) from error
    logging.getLogger(NAME).setLevel(logging.ERROR)  # it logs before it reads its own `log_level`
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
    """Runs codecarbon during the block if asked for; it writes `emissions.csv` to the run folder.

    It measures the whole machine during all of `train()`, with evaluation and saving, and also if training fails.
    """
    if NAME not in (args.report_to or ()) or args.local_process_index != 0:
        yield
        return
    where, begun = country(), timekeeper.clock.steps
    import codecarbon

    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code=where, output_dir=str(args.output_dir), log_level="error"
    )
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()
        # The data are missing if it failed, since codecarbon hides its own errors.
        if (data := getattr(tracker, "final_emissions_data", None)) is not None:
            spent = {"kwh": float(data.energy_consumed), "co2e_grams": 1e3 * float(data.emissions)}
            timekeeper.emissions = {**spent, "country": where, "since_step": begun}
