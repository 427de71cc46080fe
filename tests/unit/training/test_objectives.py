"""What the trainer and recipes do for each objective."""

import json

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.models import EffptBertForMaskedLM, ElectraForJointPreTraining, McBertForPreTraining
from hf_effpt.models.electra import prior_entropy
from hf_effpt.models.families import TNFBertForSequenceClassification
from hf_effpt.pretraining import build_model, build_trainer
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.named import ElectraTrainer, McBertTrainer, TNFTrainer
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
    assert build_model(recipe("mcbert"), tiny.tokenizer()).config.candidates == 10
    assert build_model(recipe("mcbert", candidates_at="masked"), tiny.tokenizer()).config.candidates == 5


def test_none_of_the_above_gets_a_row_that_no_token_has():
    model = build_model(recipe("mcbert"), tiny.tokenizer())
    assert model.config.nota_token_id == len(tiny.tokenizer()) == tiny.VOCAB
    assert model.config.vocab_size == tiny.VOCAB + 64
    assert sorted(model.config.special_token_ids) == [0, 1, 2, 3, 4, *range(tiny.VOCAB, tiny.VOCAB + 64)]


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
        ("mlm", {"generator_size": 0.5}, r"`model.generator_size` is 0.5, .* only with `objective` `electra`"),
        ("electra", {"candidates": 5}, r"`model.candidates` is 5, which has an effect only with `objective` `mcbert`"),
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
    beyond = range(tiny.VOCAB, tiny.VOCAB + 64)
    assert trainer.model.config.special_token_ids == [0, 1, 2, 3, 4, *beyond]
    assert set(trainer.model.config.never_sampled) >= {0, 1, 2, 3, 4, *beyond}


def test_more_candidates_than_words_are_refused_once_the_words_are_known(tmp_path):
    model = tiny.joint("mcbert", candidates=150, candidates_at="masked")
    with pytest.raises(EffptError, match="`candidates` is 150, but must be between 2 and 123"):
        tiny.EffptTrainer(
            model, tiny.arguments(tmp_path), train_dataset=tiny.rows(), processing_class=tiny.tokenizer()
        )


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_tokens_are_corrupted_as_the_objective_has_it(tmp_path, objective):
    trainer = tiny.trainer(tmp_path, objective=objective)
    masked, random, kept = OBJECTIVES[objective].corruption
    for collate in (trainer.masking, trainer.get_eval_dataloader().collate_fn):
        batches = [collate([{**row, "epoch": epoch} for row in tiny.rows()]) for epoch in range(60)]
        ids, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input_ids", "labels"))
        chosen = labels != -100
        assert chosen.sum(dim=1).tolist() == [2] * len(chosen)
        found = (ids == 4)[chosen].double().mean().item(), (ids == labels)[chosen].double().mean().item()
        assert found == (pytest.approx(masked, abs=0.02), pytest.approx(kept, abs=0.02))
        assert 1 - sum(found) == pytest.approx(random, abs=0.02)


def test_a_collator_of_ones_own_masks_as_the_objective_has_it(tmp_path):
    """With another rate, say; unless it says itself what becomes of the tokens."""
    for shares, expected in ((None, (0.85, 0.0, 0.15)), ((0.5, 0.0, 0.5), (0.5, 0.0, 0.5))):
        collate = tiny.DataCollatorForMaskedLM(tiny.tokenizer(), mlm_probability=0.25, shares=shares)
        trainer = ElectraTrainer(
            tiny.joint(), tiny.arguments(tmp_path), train_dataset=tiny.rows(), processing_class=tiny.tokenizer(),
            data_collator=collate,
        )  # fmt: skip
        assert trainer.masking is collate
        assert collate.shares == expected


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
        assert not trainer.model.electra.metric_accumulator.sums
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
    assert trainer.masking.shares == (0.85, 0.0, 0.15)


# What methods find out beforehand.


@pytest.mark.parametrize("charged", [True, False])
def test_looking_through_the_text_is_charged_once(tmp_path, monkeypatch, charged):
    ledger = {"tnf": {"min_count": 5, "max_count": 7}}
    settings = {"charge_methods": charged, "save_strategy": "steps", "save_steps": 4}
    trainer = tiny.trainer(tmp_path, ledger, **settings)
    spent = trainer.cost.prepare_seconds["tnf"]
    assert spent > 0
    assert trainer.cost.method_seconds["tnf"] == spent
    assert trainer.clock.seconds == (spent if charged else 0.0)
    trainer.train()
    assert trainer.cost.method_seconds["tnf"] >= spent
    resumed = tiny.trainer(tmp_path, ledger, **settings)
    monkeypatch.setattr(resumed.cost, "prepare_seconds", {"tnf": 1e9})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.clock.seconds < 1e6


def test_learning_rate_follows_what_the_budget_leaves_for_training(tmp_path, monkeypatch):
    """Half of the budget goes into looking through the text; the warm-up is there all the same, and the decay."""
    ledger = {"tnf": {"min_count": 5, "max_count": 7}}
    trainer = tiny.trainer(tmp_path, ledger, budget="1e9flops", logging_steps=1)
    monkeypatch.setattr(trainer.cost, "upfront_fraction", 0.5)
    for spent, share in ((0.5, 0.0), (0.75, 0.5), (1.0, 1.0)):
        trainer.clock.flops = spent * 1e9
        assert trainer.trained_share == pytest.approx(share)
    trainer.clock.flops = 0.5e9
    trainer.create_optimizer_and_scheduler(10)
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]  # the warm-up begins at its beginning
    trainer.clock.flops = (0.5 + 0.25 * 0.5) * 1e9
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(trainer.args.learning_rate)


def test_prepaid_share_survives_a_resumption(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "budget": "60s"}
    ledger = {"tnf": {"min_count": 5, "max_count": 7}}
    trainer = tiny.trainer(tmp_path, ledger, **settings)
    trainer.add_callback(tiny.StopAfter(4))
    trainer.train()
    assert 0 < trainer.cost.upfront_fraction < 1
    resumed = tiny.trainer(tmp_path, ledger, **settings)
    resumed.add_callback(tiny.StopAfter(5))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.cost.upfront_fraction == trainer.cost.upfront_fraction


def test_a_budget_that_leaves_nothing_for_training_is_refused(tmp_path, monkeypatch):
    trainer = tiny.trainer(tmp_path, {"tnf": {"min_count": 5, "max_count": 7}}, budget="2s")
    monkeypatch.setattr(trainer.cost, "prepare_seconds", {"tnf": 3.0})
    with pytest.raises(EffptError, match=r"`tnf` 3.0 s and 0 FLOPs, all of the budget of 2 seconds; give a longer"):
        trainer.train()


def test_notes_begin_as_the_seed_of_the_run_says(tmp_path):
    ledger = {"tnf": {"min_count": 5, "max_count": 7}}
    first, other, again = (tiny.trainer(tmp_path, ledger, seed=seed) for seed in (1, 2, 1))
    torch.manual_seed(99)
    model = tiny.model(ledger)
    later = tiny.EffptTrainer(
        model, tiny.arguments(tmp_path, seed=1), train_dataset=tiny.rows(), processing_class=tiny.tokenizer()
    )
    vectors = [trainer.model.backbone.notes.vectors for trainer in (first, other, again, later)]
    assert torch.equal(vectors[0], vectors[2])
    assert torch.equal(vectors[0], vectors[3])
    assert not torch.equal(vectors[0], vectors[1])


def test_methods_that_look_through_the_text_need_packed_rows(tmp_path):
    model = tiny.model({"tnf": {}})
    rows = [{"input_ids": [2, 7, 8, 3]}] * 8
    with pytest.raises(EffptError, match="The method `tnf` looks through the training text"):
        tiny.EffptTrainer(model, tiny.arguments(tmp_path), train_dataset=rows, processing_class=tiny.tokenizer())


def test_a_model_with_notes_is_not_fine_tuned_by_this_trainer(tmp_path):
    tiny.trainer(
        tmp_path, {"tnf": {"k": 2, "min_count": 5, "max_count": 7}}, save_strategy="steps", save_steps=8
    ).train()
    model = TNFBertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8")
    rows = [{"input_ids": [2, 7, 8, 3], "labels": 0}] * 8
    with pytest.raises(EffptError, match="fine-tune it with the stock `Trainer`"):
        tiny.EffptTrainer(model, tiny.arguments(tmp_path), train_dataset=rows, processing_class=tiny.tokenizer())


@pytest.mark.parametrize(
    ("name", "before"), [("bias_correction", True), ("bias_correction", False), ("decay_all", True)]
)
def test_what_the_optimizer_is_made_of_cannot_change_on_the_way(tmp_path, name, before):
    settings = {"save_strategy": "steps", "save_steps": 4}
    tiny.trainer(tmp_path, **{name: before}, **settings).train()
    resumed = tiny.trainer(tmp_path, **{name: not before}, **settings)
    with pytest.raises(EffptError, match=f"was saved with `{name}: {str(before).lower()}`"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_another_optimizer_and_no_bias_correction_exclude_each_other(tmp_path):
    with pytest.raises(EffptError, match="leave one of them out"):
        tiny.EffptTrainer(
            tiny.model(), tiny.arguments(tmp_path, bias_correction=False), train_dataset=tiny.rows(),
            processing_class=tiny.tokenizer(), optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
        )  # fmt: skip
