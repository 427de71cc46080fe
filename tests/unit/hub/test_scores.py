import json

from huggingface_hub import ModelCard

from hf_effpt.hub.card import add_scores, card_of, model_card
from tests.unit.hub.conftest import RECORD

SCORES = {
    "held_out_loss": {"value": 6.1, "n": 999, "spread": None, "notes": []},
    "blimp/pll_word_l2r": {"value": 0.5794, "n": 67000, "spread": 0.0016, "notes": ["7 ties, counted one half"]},
    "cola/mcc@default": {"value": 0.0, "n": 3, "spread": 0.0, "notes": ["seed 0: one class | predicted"]},
    "stsb/pearson@glue9_cramming": {"value": None, "n": 5, "spread": None, "notes": ["undefined"]},
}


def run_folder(tmp_path, address=None):
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    model_card(RECORD, address).save(tmp_path / "README.md")
    return tmp_path


def test_scores_reach_the_record_and_the_card(tmp_path):
    folder = run_folder(tmp_path)
    assert add_scores(folder, SCORES)
    text = (folder / "README.md").read_text()
    assert "| blimp/pll_word_l2r | 0.5794 | 0.0016 | 67,000 | 7 ties, counted one half |" in text
    assert "| stsb/pearson@glue9_cramming | undefined |  | 5 | undefined |" in text
    assert r"one class \| predicted" in text
    assert json.loads((folder / "run.json").read_text())["scores"] == SCORES
    results = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    assert results["blimp/pll_word_l2r"] == 0.5794
    assert results["cola/mcc@default"] == 0.0
    assert "stsb/pearson@glue9_cramming" not in results


def test_scores_add_up_and_newer_ones_replace_older(tmp_path):
    folder = run_folder(tmp_path)
    add_scores(folder, SCORES)
    assert add_scores(folder, {"cola/mcc@default": {**SCORES["cola/mcc@default"], "value": 0.2}})
    text = (folder / "README.md").read_text()
    assert "| cola/mcc@default | 0.2000 |" in text
    assert "blimp" in text


def test_a_card_that_somebody_edited_is_left_alone(tmp_path):
    folder = run_folder(tmp_path)
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    assert not add_scores(folder, SCORES)
    assert "blimp" not in card.read_text()
    assert "blimp/pll_word_l2r" in json.loads((folder / "run.json").read_text())["scores"]


def test_a_card_keeps_the_address_it_was_written_for(tmp_path):
    folder = run_folder(tmp_path, "org/name")
    assert card_of(folder, RECORD) == (True, "org/name")
    assert add_scores(folder, SCORES)
    assert 'from_pretrained("org/name")' in (folder / "README.md").read_text()


def test_a_folder_that_no_run_wrote_is_left_alone(tmp_path):
    assert not add_scores(tmp_path, SCORES)
    assert not list(tmp_path.iterdir())
