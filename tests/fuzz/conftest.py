"""The share of the cases of `--fuzz N` that a test tries."""

import pytest

from tests.conftest import CASES


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
