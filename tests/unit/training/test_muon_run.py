"""Runs with Muon: resumption, cuts, cost, and refused settings."""

import copy

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.muon import body_matrices, newton_schulz_flops
from hf_effpt.training.reference_time_meter import optimizer_operation, time_optimizer
from tests import tiny
from tests.contract.runs import assert_same_optimizer, losses_of


@pytest.mark.parametrize(
    ("methods", "at", "settings"),
    [
        ({}, 3, {"backbone": "modernbert", "objective": "mcbert"}),
        ({"layerdrop": {"p": 0.5}}, 3, {"gradient_accumulation_steps": 2}),
        ({"layerskip": {}}, 3, {}),
        ({"stacking": {"depth": 2, "at": [0.4], "optimizer_state": "copy"}}, 5, {}),
        ({"compress": {"head_keep": 0.5, "ffn_keep": 0.5, "at": 0.4}}, 2, {"backbone": "modernbert"}),
        ({"compress": {"head_keep": 0.5, "ffn_keep": 0.5, "at": 0.4}}, 5, {"backbone": "modernbert"}),
        ({"earlybert": {"max_search_steps": 0.5}}, 5, {}),
        ({"lottery": {"rounds": 2}}, 5, {}),
    ],
    ids=["mcbert", "layerdrop", "layerskip", "grown", "before a cut", "after a cut", "earlybert", "lottery"],
)
def test_a_resumed_run_repeats_the_straight_one(tmp_path, methods, at, settings):
    settings = {"optim": "muon", "learning_rate": 5e-3, **settings}
    straight, resumed = (tiny.trainer(tmp_path, methods, saved=saved, **settings) for saved in ([at], []))
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    tiny.assert_same_weights(straight.model, resumed.model)
    assert_same_optimizer(straight, resumed)
    assert losses_of(straight) == losses_of(resumed)
    assert straight.clock.flops == resumed.clock.flops


def test_what_is_cut_keeps_the_state_of_what_stays(tmp_path):
    """The run that is cut after its last step is the whole one but for that."""
    whole = tiny.trainer(tmp_path, optim="muon")
    whole.train()
    cut = tiny.trainer(
        tmp_path,
        {"compress": {"head_keep": 0.5, "ffn_keep": 0.5, "at": 0.99, "importance": "magnitude"}},
        optim="muon",
    )
    cut.train()
    name = "bert.encoder.layer.1.attention.self.query.weight"
    old, new = whole.model.get_parameter(name), cut.model.get_parameter(name)
    (head,) = [head for head in (0, 1) if torch.equal(old[16 * head : 16 * head + 16], new)]
    ours, theirs = cut.optimizer.state[new], whole.optimizer.state[old]
    assert torch.equal(ours["momentum_buffer"], theirs["momentum_buffer"][16 * head : 16 * head + 16])
    present = {parameter for group in cut.optimizer.param_groups for parameter in group["params"]}
    assert set(cut.optimizer.state) <= present == set(cut.model.parameters())
    assert len(body_matrices(cut.model).keys() & set(cut.optimizer.state)) == 24


def test_pruned_weights_stay_zero(tmp_path):
    """Updates are of whole matrices, of which the masks leave what is kept."""
    trainer = tiny.trainer(tmp_path, {"lottery": {"rounds": 2, "sparsity": 0.5}}, optim="muon", learning_rate=5e-3)
    trainer.train()
    weights = body_matrices(trainer.model)
    zero = sum((weight == 0).sum().item() for weight in weights) / sum(weight.numel() for weight in weights)
    assert zero == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_the_matrices_alone_learn_a_batch_by_heart(tmp_path, backbone):
    trainer = tiny.trainer(tmp_path, backbone=backbone, optim="muon", layers=2)
    model, optimizer, batch = trainer.model, trainer.create_optimizer(), tiny.batch(objective="mlm")
    model.get_input_embeddings().weight.data.normal_(0, 0.1)
    for one in optimizer.param_groups:
        one["lr"] = 0.05 if one["matrices"] else 0.0
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 2.0


def test_arguments_reach_the_optimizer(tmp_path):
    settings = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-7, "learning_rate": 3e-3}
    trainer = tiny.trainer(tmp_path, optim="muon", optim_args="momentum=9e-1, nesterov=False,ns_steps=4", **settings)
    for one in trainer.create_optimizer().param_groups:
        assert (one["momentum"], one["nesterov"], one["ns_steps"]) == (0.9, False, 4)
        assert (one["betas"], one["eps"], one["lr"]) == ((0.8, 0.95), 1e-7, 3e-3)
    assert copy.deepcopy(trainer.args).optim == "muon"


def test_a_recipe_keeps_it(tmp_path):
    sections = {"data": {"dataset": "corpus/"}, "training": {"output_dir": str(tmp_path), "optim": "muon"}}
    recipe = Recipe.load(sections, ["--training.optim_args", "ns_steps=4"])
    assert recipe.resolved()["training"]["optim"] == "muon"
    again = Recipe.load(recipe.resolved())
    assert (again.training.optim, again.training.optim_args) == ("muon", "ns_steps=4")
    assert Recipe.load(sections, ["--training.optim", "sgd"]).training.optim == "sgd"


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_its_products_are_charged(tmp_path, backbone):
    """FLOPs of its matrix products are charged in every optimizer step, not in every micro-batch."""
    settings = {"backbone": backbone, "gradient_accumulation_steps": 2, "budget": "3steps"}
    flops = []
    for optim in ("muon", "adamw_torch_fused"):
        trainer = tiny.trainer(tmp_path / optim, optim=optim, **settings)
        trainer.train()
        flops.append(trainer.clock.flops)
    wide = 2 if backbone == "bert" else 3  # a gated block has one more
    of_a_layer = 4 * newton_schulz_flops(32, 32, 5) + wide * newton_schulz_flops(32, 64, 5)
    assert flops[0] - flops[1] == 3 * 4 * of_a_layer


def test_reference_time_tells_it_apart_and_leaves_it_as_it_was(tmp_path):
    trainers = [
        tiny.trainer(tmp_path / str(place), budget="2steps", warmup_steps=0.5, **settings)
        for place, settings in enumerate(({"optim": "muon"}, {"optim": "muon", "optim_args": "ns_steps=4"}, {}))
    ]
    keys = {optimizer_operation(one.model, one.create_optimizer()) for one in trainers}
    assert len(keys) == 3
    trainer = trainers[0]
    trainer.train()
    model, optimizer = trainer.model, trainer.optimizer.optimizer
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    weights, state = tiny.weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    assert time_optimizer(model, optimizer, 1.0) > 0
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    torch.testing.assert_close(optimizer.state_dict()["state"], state)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": "moun"}, "`training.optim` 'moun' is no optimizer: did you mean `muon`?"),
        ({"optim": "adamw_torch_fuse"}, "did you mean `adamw_torch_fused`?"),
        ({"optim": "muon", "bias_correction": False}, "`training.optim` is 'muon'.*only with `bias_correction` true"),
        ({"optim": "muon", "optim_args": "ns_step=4"}, "'ns_step=4', which is no setting of Muon.*`ns_steps`?"),
        ({"optim": "muon", "optim_args": "momentum"}, "'momentum', which is no setting of Muon"),
        (
            {"optim": "muon", "optim_args": "momentum=1"},
            r"`training.optim_args.momentum` must be in \[0, 1\), not 1.0",
        ),
        ({"optim": "muon", "optim_args": "ns_steps=0"}, "`training.optim_args.ns_steps` must be a whole number"),
        ({"optim": "muon", "optim_args": "nesterov=perhaps"}, "nesterov` must be true or false, not 'perhaps'"),
    ],
)
def test_what_it_cannot_be_told_is_refused(tmp_path, changes, words):
    with pytest.raises(EffptError, match=words):
        tiny.arguments(tmp_path, **changes)


def test_a_run_that_trains_no_matrix_is_refused(tmp_path):
    with pytest.raises(EffptError, match="none of them is trained; use `adamw_torch_fused`"):
        tiny.trainer(tmp_path, {"lottery": {"learn": "supermask"}}, optim="muon")
    model = tiny.model()
    for weight in body_matrices(model):
        weight.requires_grad_(False)
    given = {"train_dataset": tiny.rows(), "processing_class": tiny.tokenizer()}
    with pytest.raises(EffptError, match="none of them is trained"):
        tiny.EffptTrainer(model, tiny.arguments(tmp_path, optim="muon"), **given)
    another = (torch.optim.SGD, {"lr": 0.1})
    with pytest.raises(EffptError, match="replaces the optimizer of `optim='muon'`; leave one of them out"):
        tiny.EffptTrainer(
            tiny.model(), tiny.arguments(tmp_path, optim="muon"), optimizer_cls_and_kwargs=another, **given
        )


@pytest.mark.parametrize(("before", "now"), [("muon", "adamw_torch"), ("adamw_torch", "muon")])
def test_a_run_keeps_its_optimizer(tmp_path, before, now):
    saving = {"budget": "2steps", "warmup_steps": 0.5, "save_strategy": "steps", "save_steps": 1}
    tiny.trainer(tmp_path, optim=before, **saving).train()
    with pytest.raises(EffptError, match=f"was saved with `optim: {before}`.* now {now}; resume with that setting"):
        tiny.trainer(tmp_path, optim=now, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
