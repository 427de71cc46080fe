"""Ten fixed runs end with the weights they ended with before the package was rearranged, to the last bit."""

import json

import pytest

from tests import golden

WRITTEN = json.loads(golden.WRITTEN.read_text(encoding="utf-8"))


@pytest.mark.skipif(golden.system() != WRITTEN["system"], reason="the hashes are of another processor or torch")
@pytest.mark.parametrize("name", list(golden.RUNS))
def test_run_ends_with_the_same_weights(tmp_path, name):
    assert golden.run(name, tmp_path) == WRITTEN["runs"][name]
