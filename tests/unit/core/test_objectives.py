import pytest

from hf_effpt.core.objectives import FLOORS, OBJECTIVES, floor_in, measured_as, objective_in


def test_a_run_tells_its_objective_and_an_older_one_was_masked_language_modelling():
    assert objective_in({}) == "mlm"
    assert objective_in({"evaluation": {"held_out_loss": 5.0}, "recipe": {"model": {"size": "tiny"}}}) == "mlm"
    assert objective_in({"evaluation": None, "recipe": {"model": {"objective": "mcbert"}}}) == "mcbert"
    assert objective_in({"model": {"objective": "electra_15"}, "recipe": None}) == "electra_15"
    assert objective_in({"evaluation": {"objective": "electra"}}) == "electra"


def test_the_floor_is_that_of_the_objective_never_of_its_generator():
    assert floor_in({"held_out_loss": 5.0, "unigram_floor": 6.0}) == 6.0  # an older record
    assert floor_in({"objective": "electra", "floor": 0.4, "unigram_floor": 6.0}) == 0.4
    assert floor_in({"objective": "all_tokens_mlm", "unigram_floor": 6.0}) is None
    assert floor_in({}) is None


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_floor_is_explained(objective):
    for evaluation in ({}, {"detection_loss": 0.4}):
        assert FLOORS[measured_as(objective, evaluation).floor]


def test_selecting_among_candidates_is_measured_otherwise():
    everywhere, chosen = (measured_as("mcbert", found) for found in ({}, {"detection_loss": 0.4}))
    assert (everywhere.per, chosen.per) == ("token", "masked token")
    assert everywhere.floor != chosen.floor
    assert measured_as("electra", {"detection_loss": 0.4}) is OBJECTIVES["electra"]


def test_only_a_masked_language_model_is_asked_to_fill_masks():
    assert [name for name, objective in OBJECTIVES.items() if objective.reads_mask] == ["mlm"]
