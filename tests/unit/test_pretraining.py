from hf_effpt.core.clock import Clock
from hf_effpt.pretraining import RunResult

ELECTRA = {
    "objective": "electra",
    "held_out_loss": 0.41617,
    "floor": 0.42537,
    "generator_loss": 5.766,
    "unigram_floor": 6.1747,
}


def summary(evaluation):
    return RunResult("out", Clock("steps", 1), evaluation).summary()


def test_a_loss_is_told_against_the_floor_of_its_objective():
    said = summary(ELECTRA)
    assert "Held-out loss 0.4162 nats a token, the prior entropy is 0.4254 (0.0092 below)." in said
    assert "Its generator's loss is 5.7660 nats a masked token, the unigram floor is 6.1747 (0.4087 below)." in said
    older = summary({"held_out_loss": 6.5, "unigram_floor": 6.0})
    assert "6.5000 nats a masked token, the unigram floor is 6.0000 (0.5000 above; it needs a longer budget" in older
    assert "generator" not in older


def test_without_held_out_text_nothing_is_said_of_losses():
    assert "loss" not in summary({})
    result = RunResult("out", Clock("steps", 1), ELECTRA)
    assert (result.held_out_loss, result.floor) == (0.41617, 0.42537)


def test_summary_names_other_ways_to_run_the_model():
    found = {
        "objective": "mlm",
        "held_out_loss": 5.5,
        "floor": 6.0,
        "unigram_floor": 6.0,
        "held_out_loss_hardened": 5.75,
    }
    assert "Run otherwise than as exported, the model has 5.7500 by `hardened`." in summary(found)
    del found["held_out_loss_hardened"]
    assert "otherwise" not in summary(found)
