"""The share of the cases of `--fuzz N` that a test tries, and counts of what came of them."""

from collections import Counter
from functools import partial

import pytest

from tests.conftest import CASES

TALLY = pytest.StashKey[Counter]()


@pytest.fixture
def cases(request):
    """Returns the `hypothesis.settings` of a test that tries this share of the cases."""
    from hypothesis import HealthCheck, settings

    def of_share(share):
        number = request.config.getoption("--fuzz")
        return settings(
            max_examples=max(1, round(share * number)),
            deadline=None,
            database=None,
            derandomize=number == CASES,  # an ordinary run tries the same cases each time
            suppress_health_check=list(HealthCheck),
        )

    return of_share


@pytest.fixture
def tally(request):
    """Returns a function that counts one case of this test as `accepted` or `refused`."""
    found = request.config.stash.setdefault(TALLY, Counter())

    def count(name, outcome):
        found[name, outcome] += 1

    return partial(count, request.node.name.partition("[")[0])
