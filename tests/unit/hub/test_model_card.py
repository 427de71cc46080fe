import copy

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS
from hf_effpt.hub.card import duration, model_card
from hf_effpt.hub.card_settings import CardSettings
from hf_effpt.models.base import facts_of


def metadata(card: ModelCard) -> dict:
    return yaml.safe_load(str(card).split("---\n")[1])


def test_metadata_is_what_the_hub_reads(record):
    data = metadata(model_card(record, "org/name"))
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "fill-mask"
    assert data["tags"] == ["hf_effpt", "pretraining", "stacking", "layerdrop"]
    assert data["model-index"][0]["name"] == "name"
    result = data["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == 3.5
    assert result["dataset"] == {"name": "corpus/", "type": "corpus/", "split": "validation"}


def test_what_no_run_knows_is_taken_but_never_guessed(record):
    given = {"license": "apache-2.0", "language": ["en"], "datasets": ["org/text"], "base_model": "org/bert"}
    assert not {*given, "widget"} & metadata(model_card(record)).keys()
    more = {"widget": ["A [MASK]."], "tags": ["hf_effpt", "mine"]}
    data = metadata(model_card(record | {"card": given | more}))
    assert {key: data[key] for key in given} == given
    assert data["widget"] == [{"text": "A [MASK]."}]
    assert data["tags"].count("hf_effpt") == 1
    assert "mine" in data["tags"]
    record["recipe"]["card"] = {"license": "mit"}  # of a run that has not ended
    assert metadata(model_card(record))["license"] == "mit"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"license": "Apache License 2.0"}, "`card.license` has 'Apache License 2.0', .* identifier such as apache"),
        ({"language": ["en", "German"]}, "`card.language` has 'German', .* codes of ISO 639"),
        ({"datasets": "../corpus"}, "`card.datasets` has '../corpus', .* on the Hub, as ORG/NAME"),
        ({"licence": "mit"}, "no `licence`: did you mean `license`"),
        ({"base_model": "a/b/c"}, "`card.base_model` has 'a/b/c'"),
    ],
)
def test_metadata_that_the_hub_would_refuse(given, says):
    with pytest.raises(EffptError, match=says):
        CardSettings.of(given)


def test_the_card_says_what_the_model_is_not_good_for(record):
    def limits(**changes):
        return model_card(record | changes).text.split("## What it is not good for\n")[1].split("\n## ")[0]

    assert "- Text unlike `corpus/`" in limits()
    assert "max_length" not in limits()
    record["data"]["sequence_length"] = 128
    assert "- Inputs of more than 128 tokens" in limits()
    assert "positions are untrained" not in limits()
    record["recipe"]["model"]["max_position_embeddings"] = 512
    assert "max_length=128)` cuts them. Its further 384 positions are untrained." in limits()
    record["recipe"]["model"]["from"] = "org/bert"
    assert "For longer ones it is at best what `org/bert` was." in limits()
    assert "- Text unlike its training text" in limits(data=None)


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Electra", "ModernBert", "Roberta"])
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_the_card_says_what_adapters_need_beside_them(record, kind, head):
    """As the stock classifier says what of it is new, but for its `classifier`, which PEFT trains."""
    config = getattr(transformers, f"{kind}Config")(vocab_size=8, hidden_size=12, num_hidden_layers=1, pad_token_id=0)
    with torch.device("meta"):
        exported = getattr(transformers, kind + head)(config)
        classifier = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    prefix, known = f"{classifier.base_model_prefix}.", {*exported.state_dict()}
    new = [name for name in classifier.state_dict() if not {name, name.removeprefix(prefix)} & known]
    modules = {name.removeprefix(prefix).split(".")[0] for name in new} - {"classifier"}
    text = model_card(record | {"model": facts_of(exported)}).text
    assert [f'modules_to_save=["{name}", "classifier"]' in text for name in modules] == [True] * len(modules)
    assert ("modules_to_save" in text) == bool(modules)


def test_the_card_says_how_the_model_was_made(record):
    text = model_card(record, "org/name").text
    assert 'AutoModelForMaskedLM.from_pretrained("org/name")' in text
    for name in ("stacking", "layerdrop"):
        assert METHODS[name].paper.title in text
        assert METHODS[name].paper.bibtex in text
    assert "| 2 | stacking | grew from 2 to 4 layers |" in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == record["recipe"]
    for fact in ("`f00d`", "4,096", "1.5e+09", "3.2 s", "0.03 MB", "effpt pretrain tiny", "2.13.0", "0.5000 nats"):
        assert fact in text


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"held_out_loss": 4.0, "unigram_floor": 4.0}, "no better than guessing"),
        ({"held_out_loss": 5.0, "unigram_floor": 4.0}, "1.0000 nats above the unigram floor"),
        ({"held_out_loss": float("nan"), "unigram_floor": 4.0}, "training diverged"),
        ({"held_out_loss": 5.0}, "was not measured"),
        (
            {"objective": "electra", "held_out_loss": 0.43, "floor": 0.42, "unigram_floor": 6.0},
            "above the prior entropy",
        ),
        ({"objective": "all_tokens_mlm", "held_out_loss": 1.0}, "copy floor was not measured"),
    ],
)
def test_the_card_is_honest_about_a_loss_that_proves_nothing(record, evaluation, says):
    card = model_card(record | {"evaluation": evaluation})
    assert says in card.text
    assert "nats below" not in card.text
    assert ".nan" not in str(card)


ENERGY = {
    "joules": 4320.0,
    "kwh": 0.0012,
    "source": "estimated from CPU time",
    "measured": False,
    "carbon_intensity": 475.0,
    "co2e_grams": 0.57,
    "carbon_source": "world average (IEA 2019)",
}
TRACKED = {
    "carbon_source": "codecarbon",
    "co2e_grams": 2.5,
    "codecarbon": {"kwh": 0.04, "co2e_grams": 2.5, "country": "FRA", "since_step": 0},
}


def test_energy_and_carbon_say_where_they_come_from(record):
    assert "Energy" not in model_card(record).text
    card = model_card(record | {"energy": ENERGY})
    assert "| Energy | 0.0012 kWh (estimated from CPU time) |" in card.text
    assert "| Carbon | 0.57 g CO2e (475 g/kWh, world average) |" in card.text
    assert metadata(card)["co2_eq_emissions"] == {
        "emissions": 0.57,
        "source": "hf_effpt, energy estimated from CPU time; 475 g/kWh, world average",
        "training_type": "pre-training",
        "hardware_used": "cpu",
    }


def test_carbon_by_codecarbon_is_said_to_be(record):
    card = model_card(record | {"energy": ENERGY | TRACKED})
    assert "| Carbon | 2.5 g CO2e (codecarbon for FRA, which counted 0.04 kWh) |" in card.text
    emissions = metadata(card)["co2_eq_emissions"]
    assert (emissions["emissions"], emissions["source"]) == (2.5, "codecarbon for FRA, which counted 0.04 kWh")
    assert emissions["geographical_location"] == "FRA"


def test_the_text_and_what_is_held_out_of_it_are_told(record):
    aside = {"documents": 1200, "tokens": 34567, "bytes": 9999, "asked": 0.01, "share": 0.0098, "of": 120_000}
    sources = [{"dataset": "a/", "documents": 90_000, "weight": 0.75}, {"dataset": "b/", "documents": 30_000}]
    record["data"] |= {"documents_by": "lines", "held_out": aside, "doubles": 3, "sources": sources}
    text = model_card(record).text
    assert "| Held out | 1,200 documents, 34,567 tokens: 0.98% of the text |" in text
    assert "| Documents of .txt files | `lines` |" in text
    assert "| Training documents that equal held-out ones | 3 |" in text
    assert "| Drawn from | 90,000 documents of `a/`, 30,000 documents of `b/` |" in text
    record["data"]["held_out"] = {"documents": 2, "tokens": 3, "bytes": 4, "dataset": "own/"}
    assert "| Held out | 2 documents, 3 tokens: `own/` |" in model_card(record).text


def test_an_older_record_keeps_its_joules_and_says_nothing_of_carbon(record):
    record["clock"]["joules"] = 1500.0
    card = model_card(record)
    assert "| Energy | 1.500 kJ |" in card.text
    assert "Carbon" not in card.text
    assert "co2_eq_emissions" not in metadata(card)


def test_what_a_method_says_of_its_cost_stands_below_the_costs(record):
    record["accounts"] = {
        "selection": {"keep": 0.5, "text": "Scored 64 rows\nfor 32."},
        "tnf": {"text": None},
        "x": None,
    }
    costs = model_card(record).text.split("## What it cost")[1].split("\n## ")[0]
    assert costs.rstrip().endswith("| Tokens per second | 1,260 |\n\nScored 64 rows for 32.")
    alone = model_card({"accounts": {"selection": {"text": "Scored 64 rows."}}}).text
    assert alone.endswith("## What it cost\n\nScored 64 rows.\n")
    assert "None" not in model_card({"accounts": {"tnf": {"text": None}}}).text
    assert "What it cost" not in model_card({"accounts": {"tnf": {"keep": 1}}}).text


def test_documents_that_were_chosen_are_said_to_be(record):
    assert "Chosen from" not in str(model_card(record))
    record["data"]["select"] = {"documents": 12345, "kept": 6000, "deduplicate": "near", "similarity": 0.8}
    assert "| Chosen from | 12,345 documents, by `deduplicate: near`, `similarity: 0.8` |" in str(model_card(record))


@pytest.mark.parametrize("energy", [None, ENERGY, ENERGY | TRACKED])
def test_whatever_is_missing_is_left_out(record, energy):
    """Cards without an entry of the record, or without one of the energy's; each leaves out what it cannot say."""
    record["energy"] = energy

    def leaves(part, path=()):
        for key, value in part.items():
            yield (*path, key)
            if isinstance(value, dict):
                yield from leaves(value, (*path, key))

    paths = [(), *leaves(record)] if energy is None else [("energy", *path) for path in leaves(energy)]
    for path in paths:
        if path == ("clock", "unit"):  # a budget always has its unit
            continue
        for blank in ("absent", None):
            poorer = copy.deepcopy(record) if path else {}
            part = poorer
            for key in path[:-1]:
                part = part[key]
            if path and blank == "absent":
                del part[path[-1]]
            elif path:
                part[path[-1]] = None
            if path == ("model", "stock_class") and blank is None:
                continue
            card = model_card(poorer, "org/name")
            body = card.text.split("## Recipe")[0] + card.text.split("```bash")[-1]
            assert "None" not in body, f"{path} {blank}"
            assert "None" not in str(metadata(card)), f"{path} {blank}"
            assert " ()" not in body, f"{path} {blank}"
            assert "\n\n\n\n" not in card.text


def test_a_card_is_deterministic_and_survives_a_round_trip(record, tmp_path):
    card = model_card(record, "org/name")
    assert str(card) == str(model_card(copy.deepcopy(record), "org/name"))
    card.save(tmp_path / "README.md")
    assert str(ModelCard.load(tmp_path / "README.md")) == str(card)


def test_values_cannot_break_a_table(record):
    record["ledger"]["events"][0]["what"] = "a | b\nc"
    record["ledger"]["methods"] = {"foreign": {"x": 1}}
    text = model_card(record).text
    assert "| a \\| b c |" in text
    assert "**foreign** (`x: 1`)" in text


def test_duration():
    said = {0.04: "0.0 s", 59.9: "59.9 s", 60: "1 min 0 s", 3599.6: "1 h 0 min", 7260: "2 h 1 min"}
    assert {seconds: duration(seconds) for seconds in said} == said


ELECTRA = {
    "objective": "electra",
    "masked_tokens": 33290,
    "unigram_floor": 6.1747,
    "held_out_loss": 0.41617,
    "generator_loss": 5.766,
    "generator_accuracy": 0.1077,
    "discriminator_loss": 0.41617,
    "replaced_rate": 0.15154,
    "floor": 0.42537,
}


def of_objective(record, objective, stock_class, **changes):
    record["evaluation"] = {**ELECTRA, "objective": objective, **changes}
    record["model"]["stock_class"] = stock_class
    record["recipe"]["model"]["objective"] = objective
    return model_card(record, "org/name")


def test_a_discriminator_is_judged_by_its_own_floor_and_used_without_a_head(record):
    card = of_objective(record, "electra", "ElectraForPreTraining")
    for fact in (
        "Objective: `electra`. Tells tokens that a generator has replaced",
        "0.0092 nats below the prior entropy",
        "| Held-out loss (nats per token) | 0.4162 |",
        "| Prior entropy | 0.4254 |",
        "| Margin | 0.0092 |",
        "| Generator's held-out loss (nats per masked token) | 5.7660 |",
        "| Its unigram floor | 6.1747 |",
        "| Replaced, share of all tokens | 15.15% |",
        "compares neither with the loss of a masked language model",
        'AutoModel.from_pretrained("org/name")',
        "`generator/` in this folder holds the generator as a stock `ElectraForMaskedLM`",
    ):
        assert fact in card.text, fact
    assert "uncalibrated" not in card.text
    data = metadata(card)
    assert "pipeline_tag" not in data
    assert "model-index" not in data  # the Hub has no task for such a loss


@pytest.mark.parametrize("objective", ["mcbert", "replace_mlm", "all_tokens_mlm"])
def test_a_head_that_never_read_the_mask_token_is_not_offered_to_fill_masks(record, objective):
    record["scores"] = {"blimp/pll_word_l2r": {"value": 0.51, "n": 10, "spread": None, "notes": []}}
    card = of_objective(record, objective, "BertForMaskedLM")
    assert "has never read the mask token" in card.text
    assert ("uncalibrated" in card.text) == (objective == "mcbert")
    assert ("holds the meta controller" in card.text) == (objective == "mcbert")
    assert "AutoModelForMaskedLM, AutoTokenizer" not in card.text
    data = metadata(card)
    assert data["pipeline_tag"] == "feature-extraction"
    assert [result["task"]["type"] for result in data["model-index"][0]["results"]] == ["other"]


def test_mcbert_at_chosen_positions_has_two_losses_and_another_floor(record):
    card = of_objective(
        record,
        "mcbert",
        "BertForMaskedLM",
        held_out_loss=2.25,
        floor=2.3026,
        detection_loss=0.4213,
        detection_floor=0.43,
    )
    assert "0.0526 nats below the loss of a guess among the candidates" in card.text
    assert "| Loss of detecting what is replaced (nats per token) | 0.4213 |" in card.text


def test_an_encoder_alone_has_no_head_to_warn_of(record):
    text = of_objective(record, "electra", "BertModel").text
    assert "ElectraForPreTraining" not in text
    assert "`generator/`" in text


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("layerskip", {"target": 0.4}, ("share one projection", "the last layer has no gate")),
        ("layerdrop", {"rate": "pld", "p": 0.5}, ("(3L - 1) / 4", "(3L + 1) / 4", "first layer is skipped")),
        ("lottery", {"sparsity": 0.6}, ("the head and all else is rewound", "over all layers together")),
    ],
)
def test_the_card_says_where_a_method_departs_from_its_publication(record, name, settings, says):
    run = copy.deepcopy(record)
    run["ledger"]["methods"] = {name: settings}
    text = model_card(run).text
    (line,) = (line for line in text.splitlines() if line.startswith(f"- **{name}**"))
    assert "Not as published: " in line
    for part in says:
        assert part in line


def test_a_method_as_published_has_nothing_to_add(record):
    run = copy.deepcopy(record)
    run["ledger"]["methods"] = {"layerdrop": {"p": 0.2}}
    assert "Not as published" not in model_card(run).text


def test_the_card_says_which_of_alike_documents_stayed(record):
    chosen = {"documents": 10, "kept": 8, "deduplicate": "semantic", "similarity": 0.95}
    run = copy.deepcopy(record)
    run["data"]["select"] = chosen
    assert "of alike ones the farthest from their cluster's centre" in model_card(run).text
    run["data"]["select"] = chosen | {"deduplicate": "near"}
    assert "farthest" not in model_card(run).text
