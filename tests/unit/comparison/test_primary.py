"""The primary measure is refused before anything is trained where the tasks cannot give it."""

import json

import pytest
from datasets import Dataset

from hf_effpt.comparison.experiment import find_primary
from hf_effpt.core.errors import EffptError

ARMS = {"plain": "mlm", "other": "electra"}


@pytest.fixture
def data(tmp_path):
    task = tmp_path / "tasks" / "cola"
    task.mkdir(parents=True)
    for split in ("train", "validation"):
        Dataset.from_list([{"sentence": "a b", "label": i % 2} for i in range(4)]).to_parquet(
            task / f"{split}.parquet"
        )
    pair = {"sentence_good": "x", "sentence_bad": "y", "UID": "u", "field": "f"}
    (tmp_path / "blimp.jsonl").write_text(json.dumps(pair))
    return tmp_path


def find(primary, data, tasks=("blimp", "cola"), arms=ARMS, protocol="default", pairs=None):
    return find_primary(primary, arms, tasks, data, protocol, pairs)


def test_the_held_out_loss_is_the_default_and_scores_are_known_by_their_names(data):
    assert find(None, data) == find("held_out_loss", data) == find(None, None, ()) == "held_out_loss"
    assert find("cola/mcc@default", data) == "cola/mcc@default"
    assert find("average", data) == find("average@default", data) == "average@default"
    assert find("blimp/pll_word_l2r-9", data, arms={"a": "mlm", "b": "mcbert"}, pairs=9) == "blimp/pll_word_l2r-9"
    assert find("blimp/discriminator", data, arms={"a": "electra", "b": "electra_15"}) == "blimp/discriminator"


@pytest.mark.parametrize(
    ("primary", "tasks", "protocol"),
    [
        ("cola/mcc@default", ["blimp"], "default"),
        ("cola/accuracy@default", ["cola"], "default"),
        ("cola/mcc@default", ["cola"], "glue9_cramming"),
        ("average", ["blimp"], "default"),
        ("average", ["cola"], "glue9_cramming"),  # which averages nine figures
        ("blimp/pll_word_l2r-9", ["blimp"], "default"),
        ("loss", [], "default"),
    ],
)
def test_what_the_tasks_cannot_give_is_refused_with_what_they_give(data, primary, tasks, protocol):
    with pytest.raises(EffptError, match=rf"primary measure is '{primary}', but the tasks .* give "):
        find(primary, data, tasks, {"a": "mlm"}, protocol)


def test_blimp_of_a_discriminator_is_another_score(data):
    with pytest.raises(EffptError, match=r"of arm `other` \(`electra`\) BLiMP measures `discriminator`"):
        find("blimp/pll_word_l2r", data)
    with pytest.raises(EffptError, match=r"of arm `plain` \(`mlm`\) BLiMP measures `pll_word_l2r`"):
        find("blimp/discriminator", data)


def test_the_masked_token_loss_of_a_discriminator_is_refused_before_it_is_trained(data):
    with pytest.raises(EffptError, match="Arm `other` trains a discriminator, which has no masked-token loss"):
        find(None, data, ["loss"])
    assert find(None, data, ["loss"], {"a": "mlm", "b": "mcbert"}) == "held_out_loss"
    with pytest.raises(EffptError, match="give no scores"):  # it is the default, under its own name
        find("x", data, ["loss"], {"a": "mlm"})
