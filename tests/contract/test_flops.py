"""Charged FLOPs equal those of the real step: for every method, with checkpointing and with label smoothing."""

import pytest

from hf_effpt.training.flops import FlopCounter

from .flops import INTO_LAYERS, VARIED, count_run, ledgers, variants_of

# A method costs the same in another encoder or beside a generator, so that there those will do that change what is
# computed; the table that the module below prints has all of them.
RUNS = [("mlm", name) for name in ledgers("mlm")]
RUNS += [("modernbert", name) for name in (*INTO_LAYERS, "compress", "tnf")]
RUNS += [(objective, name) for objective in ("electra", "mcbert") for name in ("none", "append_top", "compress")]


@pytest.fixture(scope="module")
def counters():
    """A counter for each objective, which has to tell apart all that its runs do."""
    return {objective: FlopCounter() for objective, _ in RUNS}


@pytest.mark.parametrize(("objective", "name"), RUNS)
def test_charged_flops_are_those_of_the_real_step(tmp_path, counters, objective, name):
    variants = variants_of(objective, name)
    counts = count_run(tmp_path, objective, ledgers(objective)[name], counters[objective], variants)
    assert len(counts) == 8 * len(variants)
    for count in counts:
        assert count.charged == pytest.approx(count.real, rel=1e-9), count
    real = {name: [count.real for count in counts if count.variant == name] for name in VARIED}
    if "checkpointing" in variants:
        assert sum(real["checkpointing"]) > sum(real["plain"])
    if "smoothing" in variants and name != "layerskip":  # which rows run is drawn anew
        assert real["smoothing"] == real["plain"]
