"""Decay branches: a branch is the run that was asked to end there, and the run does not notice its branches."""

import json

import pytest
from transformers import AutoModelForMaskedLM

from hf_effpt.core.errors import EffptError
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.branches import decay_share
from tests import tiny

# 16 steps of 64 tokens; the warm-up would be another share of a shorter run.
WHOLE = 16 * 4 * tiny.LENGTH
STABLE = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 0.25}}
RUN = {**STABLE, "budget": f"{WHOLE}tokens", "warmup_steps": 0.0}


def trainer(out, *args, branches=(0.25, 0.5), **changes):
    return tiny.trainer(out, *args, **{**RUN, "branches": list(branches) or None, **changes})


def rates_of(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def record_of(run, share):
    return json.loads((run.branches.folder(share) / "run.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with dropout, before its branches are trained."""
    made = trainer(tmp_path_factory.mktemp("run"), dropout=0.1)
    made.train()
    return made


def test_a_run_does_not_notice_its_branches(run, tmp_path):
    alone = trainer(tmp_path, branches=(), dropout=0.1)
    alone.train()
    tiny.assert_same_weights(alone.model, run.model)
    assert alone.clock.tokens == run.clock.tokens == WHOLE
    assert [folder.name for folder in run.branches.folder(0.5).iterdir()] == ["checkpoint-6"]


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_branch_is_the_run_of_a_smaller_budget(run, tmp_path, share):
    short = trainer(tmp_path, branches=(), dropout=0.1, budget=f"{share * WHOLE}tokens")
    short.train()
    found = run.branches.train(share)
    tiny.assert_same_weights(short.model, run.model)
    assert rates_of(short) == rates_of(run)
    assert found["tokens"] == run.clock.tokens == share * WHOLE
    assert found["own_tokens"] == 0.25 * share * WHOLE
    assert record_of(run, share)["branch"]["ends_at"] == share
    stock = AutoModelForMaskedLM.from_pretrained(run.branches.folder(share))
    assert type(stock).__module__.startswith("transformers.")


def test_a_branch_is_trained_once(run, monkeypatch):
    first = run.branches.train(0.5)
    monkeypatch.setattr(type(run), "train", None)
    assert run.branches.train(0.5) == first
    assert not list(run.branches.folder(0.5).glob("checkpoint-*"))


def test_a_run_that_is_killed_and_resumed_has_the_same_branches(run, tmp_path):
    killed = trainer(tmp_path, dropout=0.1, save_strategy="steps", save_steps=5)
    killed.add_callback(tiny.StopAfter(8))
    killed.train()
    resumed = trainer(tmp_path, dropout=0.1, save_strategy="steps", save_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    resumed.branches.train(0.5)
    run.branches.train(0.5)
    ours, theirs = (AutoModelForMaskedLM.from_pretrained(one.branches.folder(0.5)) for one in (run, resumed))
    tiny.assert_same_weights(ours, theirs)


def test_methods_follow_the_clock_of_the_whole_run(tmp_path):
    """A branch ends with the layers that the run has there."""
    grown = trainer(tmp_path, {"stacking": {"depth": 1, "at": [0.3, 0.7]}}, branches=[0.25, 0.5, 0.75])
    grown.train()
    depths = []
    for share in (0.25, 0.5, 0.75):
        grown.branches.train(share)
        depths.append(len(grown.model.config.layer_order or range(4)))
    assert depths == [1, 2, 4]
    assert [len(AutoModelForMaskedLM.from_pretrained(grown.branches.folder(share)).bert.encoder.layer)
            for share in (0.25, 0.5, 0.75)] == depths  # fmt: skip


def test_a_rate_that_starts_anew_leaves_no_branch_before(tmp_path, caplog):
    again = trainer(tmp_path, {"lottery": {"rounds": 2, "sparsity": 0.4}}, branches=[0.25, 0.9])
    again.train()
    began = again.model.config.events[-1]["span"][0]
    assert 0.25 < began < 0.9
    assert again.branches.train(0.9)["tokens"] == pytest.approx(0.9 * WHOLE, abs=4 * tiny.LENGTH)


def test_the_decay_is_a_share_or_steps():
    def share(**changes):
        return decay_share(tiny.arguments("out", **{**STABLE, **changes}))

    assert share(budget="1e6tokens") == 0.25
    assert share(budget="40steps", lr_scheduler_kwargs={"num_decay_steps": 10}) == 0.25
    assert share(budget="40steps", lr_scheduler_kwargs=None) == 0.2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": None}, "branches.*lr_scheduler_type"),
        ({"branches": [0.5, 0.25]}, "rising shares"),
        ({"branches": [0.5, 1.0]}, "the end of the run is no branch"),
        ({"branches": []}, "rising shares"),
        ({"branches": 0.5}, "rising shares"),
        ({"branches": [0.2], "warmup_steps": 0.2}, "before the warm-up of 0.2 is over"),
        ({"branches": [0.1], "budget": "16steps"}, "no step to decay in"),
        ({"lr_scheduler_kwargs": {"num_decay_steps": 100}}, "not in steps"),
        ({"lr_scheduler_kwargs": {"num_decay_steps": "soon"}}, "must be a share"),
        ({"lr_scheduler_kwargs": {"num_decay_steps": 0.25, "num_stable_steps": 3}}, "leave it out"),
        ({"lr_scheduler_kwargs": {"num_decay_steps": 0.9}, "warmup_steps": 0.2}, "more than all"),
    ],
)
def test_branches_that_cannot_be_are_refused_at_construction(changes, says):
    with pytest.raises(EffptError, match=says):
        tiny.arguments("out", **{**RUN, "branches": [0.5], **changes})


def test_a_branch_below_what_is_spent_before_the_first_step_is_refused(tmp_path):
    dear = trainer(tmp_path, branches=[0.25])
    dear.cost.prepare_seconds, dear.cost.prepare_flops = {"start": 0.0}, {"start": 1.0}
    dear.args.budget = "3flops"
    with pytest.raises(EffptError, match="are spent before the first step"):
        dear.train()


def test_a_recipe_and_its_flags_have_branches_and_an_average():
    flags = ["--training.lr_scheduler_type", "warmup_stable_decay", "--training.branches", "[0.3, 0.6]"]
    flags += ["--training.average", "{kind: ema, span: 0.05}", "--data.dataset", "text"]
    recipe = Recipe.load("tiny", flags)
    assert recipe.training.branches == [0.3, 0.6]
    assert recipe.training.average == {"kind": "ema", "span": 0.05}
    assert Recipe.load(recipe.resolved()).resolved() == recipe.resolved()
    with pytest.raises(EffptError, match="rising shares"):
        Recipe.load("tiny", [*flags[:3], "[0.6, 0.3]", *flags[4:]])
