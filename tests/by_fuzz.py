"""Tries random recipes, methods, runs, rows and datasets, and counts how many were accepted, refused, or failed.

    python -m tests.by_fuzz --cases 10000 --out model_cards/results/fuzz.json

A case fails if anything but a sentence for people comes of it, or if what was accepted does not train and export.
"""

import argparse
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hf_effpt.core.files import write_json
from tests.fuzz.conftest import TALLY

KINDS = {
    "test_sections": "settings of a section of a recipe",
    "test_methods_together": "methods together",
    "test_any_method_trains_or_is_refused": "runs of a method",
    "test_rows_and_masks": "rows and masks",
    "test_datasets_of_any_shape": "datasets",
}


class Counts:
    """Plugin of pytest that keeps the counts and the failures of a session."""

    def __init__(self) -> None:
        self.tally: Counter = Counter()
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            name = report.nodeid.rpartition("::")[2].partition("[")[0]
            self.failures[name] = report.longreprtext.strip().splitlines()[-1]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.tally = session.config.stash.get(TALLY, Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="in all kinds together (default 10,000)")
    parser.add_argument("--out", type=Path, required=True, help="file of the results")
    args = parser.parse_args()
    counts, started = Counts(), time.monotonic()
    folder = str(Path(__file__).parent / "fuzz")
    options = ["--fuzz", str(args.cases), "-n", "0", "-q", "--timeout", "0"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is imported above
    pytest.main([folder, *options], plugins=[counts])
    results = {
        kind: {outcome: counts.tally[test, outcome] for outcome in ("accepted", "refused")}
        | {"failure": counts.failures.get(test)}
        for test, kind in KINDS.items()
    }
    command = shlex.join(["python", "-m", "tests.by_fuzz", *sys.argv[1:]])
    write_json(args.out, {"command": command, "seconds": round(time.monotonic() - started), "results": results})
    sys.exit(1 if counts.failures else 0)


if __name__ == "__main__":
    main()
