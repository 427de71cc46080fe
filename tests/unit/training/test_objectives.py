"""What the trainer and recipes do for each objective."""

import json

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.models import EffptBertForMaskedLM, ElectraForJointPreTraining, McBertForPreTraining
from hf_effpt.models.electra import prior_entropy
from hf_effpt.pretraining import build_model, build_trainer
from hf_effpt.training.named import ElectraTrainer, McBertTrainer, TNFTrainer
from hf_effpt.training.recipe import Recipe
from tests import tiny

JOINT = [name for name in OBJECTIVES if name != "mlm"]


def recipe(objective, **model):
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"max_position_embeddings": 32, "objective": objective}
    return Recipe.load({"model": sizes | model, "data": {"dataset": "d", "sequence_length": 16}})


# Recipes.


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_recipe_builds_the_model_of_its_objective(objective):
    model = build_model(recipe(objective), tiny.tokenizer())
    assert model.pretrains
    assert getattr(model.config, "objective", "mlm") == objective
    assert model.config.num_hidden_layers == 2
    assert recipe(objective).resolved()["model"]["objective"] == objective


def test_recipe_settings_reach_the_model():
    model = build_model(recipe("electra", embedding_size=16, generator_size=0.5, loss_weight=20), tiny.tokenizer())
    assert isinstance(model, ElectraForJointPreTraining)
    assert model.generator.config.hidden_size == 16
    assert model.config.embedding_size == model.generator.config.embedding_size == 16
    assert model.config.main_weight == 20.0
    model = build_model(recipe("mcbert", candidates=4, candidates_at="masked", faithful=True), tiny.tokenizer())
    assert isinstance(model, McBertForPreTraining)
    assert (model.config.candidates, model.config.candidates_at, model.config.faithful) == (4, "masked", True)


def test_none_of_the_above_gets_a_row_that_no_token_has():
    model = build_model(recipe("mcbert"), tiny.tokenizer())
    assert model.config.nota_token_id == len(tiny.tokenizer()) == tiny.VOCAB
    assert model.config.vocab_size == tiny.VOCAB + 64
    assert sorted(model.config.special_token_ids) == [0, 1, 2, 3, 4]


def test_none_of_the_above_takes_an_unused_token():
    tokenizer = tiny.tokenizer().__class__(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, pad_token="[PAD]", mask_token="[MASK]",
        cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    tokenizer.add_tokens(["[unused0]", "[unused1]"])
    model = build_model(recipe("mcbert"), tokenizer)
    assert model.config.nota_token_id == tokenizer.convert_tokens_to_ids("[unused0]")


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ("mlm", {"generator_size": 0.5}, r"`model.generator_size` is 0.5, but must be left out"),
        ("electra", {"candidates": 5}, r"`model.candidates` is 5, but must be left out, since only mcbert"),
        ("electra", {"generator_size": 2.0}, "The generator is 64 wide, more than the 32"),
        ("mcbert", {"candidates": 1}, "`candidates` is 1"),
        ("mcbert", {"candidates_at": "some"}, "candidates_at"),
        ("elektra", {}, "objective"),
    ],
)
def test_impossible_recipes_are_refused(objective, model, message):
    with pytest.raises(EffptError, match=message):
        recipe(objective, **model)


def test_more_candidates_than_the_vocabulary_are_refused_before_training():
    with pytest.raises(EffptError, match="`candidates` is 500"):
        build_model(recipe("mcbert", candidates=500), tiny.tokenizer())


# The trainer.


def test_a_token_cannot_stand_for_none_of_the_above(tmp_path):
    model = tiny.joint("mcbert", vocab_size=tiny.VOCAB)  # whose last row is a word's
    with pytest.raises(EffptError, match="is that of the token 'w122': the vocabulary has no free row there"):
        tiny.EffptTrainer(
            model, tiny.arguments(tmp_path), train_dataset=tiny.rows(), processing_class=tiny.tokenizer()
        )


def test_special_tokens_are_no_candidates_though_nobody_said_so(tmp_path):
    trainer = tiny.trainer(tmp_path, objective="mcbert")
    assert trainer.model.config.special_token_ids == [0, 1, 2, 3, 4]
    with torch.no_grad():
        assert set(trainer.model.config.never_sampled) >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_tokens_are_corrupted_as_the_objective_has_it(tmp_path, objective):
    trainer = tiny.trainer(tmp_path, objective=objective)
    shares = OBJECTIVES[objective].corruption
    for masked, loader in (
        (trainer.masking.masked, trainer.get_train_dataloader()),
        (round(100 * shares[0]), trainer.get_eval_dataloader()),
    ):
        assert masked == round(100 * shares[0])
        batches = [next(iter(loader))]
        chosen = torch.cat([batch["labels"] != -100 for batch in batches])
        assert chosen.sum(dim=1).tolist() == [2] * len(chosen)


def test_named_trainers_know_their_objective(tmp_path):
    for cls, objective in ((ElectraTrainer, "electra"), (ElectraTrainer, "all_tokens_mlm"), (McBertTrainer, "mcbert")):
        assert tiny.trainer(tmp_path, cls=cls, objective=objective).model.config.objective == objective
    with pytest.raises(EffptError, match=r"`ElectraTrainer` trains models .* has `mcbert`; use `EffptTrainer`"):
        tiny.trainer(tmp_path, cls=ElectraTrainer, objective="mcbert")
    with pytest.raises(EffptError, match="`McBertTrainer` trains models with the objective mcbert"):
        tiny.trainer(tmp_path, cls=McBertTrainer, objective="mlm")


def test_trainer_with_notes_switches_them_on(tmp_path):
    args = tiny.arguments(tmp_path)
    model = tiny.model()
    model.add_method("tnf", min_count=5, max_count=7)
    trainer = TNFTrainer(model, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())
    assert isinstance(trainer.model, EffptBertForMaskedLM)
    assert trainer.model.config.methods["tnf"]["entries"] > 0


@pytest.mark.parametrize("objective", JOINT)
def test_parts_of_the_loss_are_logged(tmp_path, objective):
    trainer = tiny.trainer(tmp_path, objective=objective, gradient_accumulation_steps=2)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "generator_loss" in entry]
    assert len(entries) == 8
    name = trainer.model.main_loss_name
    for entry in entries:
        assert 0 < entry["replaced_rate"] <= 1
        if trainer.model.config.objective in ("electra", "electra_15"):
            whole = entry["generator_loss"] + trainer.model.config.main_weight * entry[name]
            assert entry["loss"] == pytest.approx(whole, rel=1e-4)
            assert entry["floor"] == pytest.approx(prior_entropy(entry["replaced_rate"]))


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_evaluation_is_of_the_objective_and_the_same_again(tmp_path, objective):
    trainer = tiny.trainer(tmp_path, objective=objective, dropout=0.1, logging_steps=4)
    trainer.train()
    before = torch.get_rng_state()
    first, metrics = (trainer.evaluate(), trainer.evaluation)[::-1]
    trainer.evaluate()
    assert trainer.evaluation == first
    assert torch.equal(torch.get_rng_state(), before)
    assert metrics["eval_loss"] == first["held_out_loss"]
    assert first["objective"] == objective
    assert first["masked_tokens"] == 12 * 2
    assert first["floor"] >= 0  # with all chosen tokens replaced there is nothing to tell
    if objective != "mlm":
        assert first["held_out_loss"] == first[trainer.model.main_loss_name]
        # evaluation leaves nothing behind that the next log entry would count
        assert not trainer.model.electra.tally.sums
    json.dumps(first)


def test_run_record_names_what_is_exported(tmp_path):
    trainer = tiny.trainer(tmp_path, objective="mcbert")
    trainer.train()
    trainer.save_model()
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["model"]["stock_class"] == "BertForMaskedLM"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert json.loads((tmp_path / "generator" / "config.json").read_text())["architectures"] == ["ElectraForMaskedLM"]


def test_trainer_of_a_recipe_masks_as_the_recipe_says(tmp_path):
    found = recipe("electra")
    found.training.output_dir = str(tmp_path)
    trainer = build_trainer(found, tiny.tokenizer(), {"train": tiny.rows(), "validation": tiny.rows(12, seed=1)})
    assert (trainer.masking.masked, trainer.masking.masked_or_random) == (85, 85)


# What methods find out beforehand.


@pytest.mark.parametrize("charged", [True, False])
def test_looking_through_the_text_is_charged_once(tmp_path, monkeypatch, charged):
    ledger = {"tnf": {"min_count": 5, "max_count": 7}}
    settings = {"charge_methods": charged, "save_strategy": "steps", "save_steps": 4}
    trainer = tiny.trainer(tmp_path, ledger, **settings)
    spent = trainer.preparation["tnf"]
    assert spent > 0
    assert trainer.costs["tnf"] == spent
    assert trainer.clock.seconds == (spent if charged else 0.0)
    trainer.train()
    assert trainer.costs["tnf"] >= spent
    resumed = tiny.trainer(tmp_path, ledger, **settings)
    monkeypatch.setattr(resumed, "preparation", {"tnf": 1e9})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.clock.seconds < 1e6


def test_methods_that_look_through_the_text_need_packed_rows(tmp_path):
    model = tiny.model({"tnf": {}})
    rows = [{"input_ids": [2, 7, 8, 3]}] * 8
    with pytest.raises(EffptError, match="The method `tnf` looks through the training text"):
        tiny.EffptTrainer(model, tiny.arguments(tmp_path), train_dataset=rows, processing_class=tiny.tokenizer())


def test_another_optimizer_and_no_bias_correction_exclude_each_other(tmp_path):
    with pytest.raises(EffptError, match="leave one of them out"):
        tiny.EffptTrainer(
            tiny.model(), tiny.arguments(tmp_path, bias_correction=False), train_dataset=tiny.rows(),
            processing_class=tiny.tokenizer(), optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
        )  # fmt: skip
