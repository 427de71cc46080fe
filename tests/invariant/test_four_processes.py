"""Four processes on two machines give the steps of one process, with every method; all of them hold the same."""

import pytest

from tests.by_processes import PADDED, compared, launch, saved, trained
from tests.contract.settings import SETTINGS


@pytest.mark.slow
def test_every_method_in_one_launch(tmp_path, subtests):
    """Those that cut the model go on by themselves; tokens and FLOPs of rows of all lengths are one sum."""
    launch([*SETTINGS, *PADDED], tmp_path, machines=2, each=2)
    for name in SETTINGS:
        with subtests.test(name):
            found = compared(trained(name, tmp_path / "one"), saved(name, tmp_path, 4))
            difference = found.pop("largest_difference")
            assert all(found.values()), found
            if name != "selection":  # of which each picks from rows of its own
                assert difference < 1e-6
    for name in PADDED:
        with subtests.test(name):
            results = saved(name, tmp_path, 4)
            assert len({one["hash"] for one in results}) == 1
            assert len({tuple(one["counts"]) for one in results}) == 1
            assert results[0]["counts"][0] > 2
