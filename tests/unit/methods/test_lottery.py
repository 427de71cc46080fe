"""Iterative magnitude pruning: what is ranked, how much goes, what is rewound, and what the learning rate does."""

import math

import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.methods.lottery.masks import prunable
from hf_effpt.methods.lottery.ranking import best, scores_of
from hf_effpt.methods.lottery.rounds import begin, note_prunings, rounds_of
from hf_effpt.methods.lottery.signs import beginning
from hf_effpt.models import EffptBertForMaskedLM, EffptBertForSequenceClassification
from tests import tiny
from tests.stock import assert_learns_as_stock

FIRST = {"a": torch.tensor([[1.0, -1.0, 2.0]]), "b": torch.tensor([[-0.5, 0.5]])}
FINAL = {"a": torch.tensor([[-0.9, -3.0, 2.1]]), "b": torch.tensor([[-1.2, -0.1]])}


def all_kept(like):
    return {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in like.items()}


@pytest.mark.parametrize(
    ("criterion", "a", "b"),
    [
        ("large_final", [0.9, 3.0, 2.1], [1.2, 0.1]),
        ("large_final_same_sign", [-0.9, 3.0, 2.1], [1.2, -0.1]),
        ("magnitude_increase", [-0.1, 2.0, 0.1], [0.7, -0.4]),
    ],
)
def test_criteria_by_hand(criterion, a, b):
    scores = scores_of(criterion, FINAL, FIRST, seed=0)
    assert torch.allclose(scores["a"], torch.tensor([a]))
    assert torch.allclose(scores["b"], torch.tensor([b]))


def test_random_scores_are_a_function_of_the_seed():
    found = [scores_of("random", FINAL, FIRST, seed)["a"] for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_large_negative_weights_are_kept_and_matrices_ranked_together():
    scores = scores_of("large_final", FINAL, FIRST, seed=0)
    kept = best(scores, all_kept(FINAL), 3)
    assert kept["a"].tolist() == [[False, True, True]]
    assert kept["b"].tolist() == [[True, False]]
    assert sum(int(mask.sum()) for mask in best(scores, all_kept(FINAL), 5).values()) == 5


def test_of_equals_exactly_the_first_are_kept():
    scores = {"a": torch.tensor([[1.0, 1.0, 2.0]]), "b": torch.tensor([[1.0, 0.0]])}
    kept = best(scores, all_kept(scores), 2)
    assert kept["a"].tolist() == [[True, False, True]]
    assert kept["b"].tolist() == [[False, False]]


def test_what_was_pruned_never_comes_back():
    """Even where its score is the highest, or that of the survivors is below zero."""
    scores = {"a": torch.tensor([[9.0, -1.0, -2.0]])}
    kept = best(scores, {"a": torch.tensor([[False, True, True]])}, 1)
    assert kept["a"].tolist() == [[False, True, False]]
    assert best(scores, kept, 1)["a"].tolist() == [[False, True, False]]


def test_constants_have_the_standard_deviation_of_their_matrix():
    sigma = math.sqrt((9 + 1 + 4) / 3 - ((3 - 1 + 2) / 3) ** 2)
    first = {"a": torch.tensor([[3.0, -1.0, 2.0]])}
    assert torch.allclose(beginning(first, "keep_sign", 0)["a"], torch.tensor([[sigma, -sigma, sigma]]))
    many = {"a": torch.randn(40, 40)}
    drawn = [beginning(many, "random_sign", seed)["a"] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].unique().numel() == 2
    assert 0.4 < (drawn[0] > 0).double().mean() < 0.6
    assert torch.equal(beginning(many, "rewind", 0)["a"], many["a"])


def test_what_is_pruned():
    """Attention, feed-forward blocks and the pooler; no embeddings, LayerNorms, biases or heads."""
    names = [f"layer.{i}.{part}" for i in range(4) for part in ("query", "key", "value", "output", "up", "down")]
    assert list(prunable(tiny.model().bert)) == names
    classifier = EffptBertForSequenceClassification(tiny.config())
    assert list(prunable(classifier.bert)) == [*names, "pooler"]
    assert prunable(classifier.bert)["pooler"] is classifier.bert.pooler.dense


def test_before_the_first_pruning_it_is_stock_bit_for_bit():
    stock, model = assert_learns_as_stock({"lottery": {}}, until=0.03)
    assert [name for name, _ in stock.named_parameters()] == [name for name, _ in model.named_parameters()]


class Watch(tiny.TrainerCallback):
    """What a run is made of after each step, once methods have had their turn."""

    def __init__(self, trainer):
        self.trainer, self.after = trainer, {}
        self.rates = {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.rates[state.global_step] = self.trainer.optimizer.param_groups[0]["lr"]

    def on_step_end(self, args, state, control, **kwargs):
        model = self.trainer.model
        snapshot = None if model.snapshot is None else {n: b.clone() for n, b in model.snapshot.named_buffers()}
        self.after[state.global_step] = {
            "weights": tiny.weights(model),
            "kept": {name: mask.clone() for name, mask in model.bert.masks.kept().items()},
            "snapshot": snapshot,
            "states": len(self.trainer.optimizer.state),
        }


def watched(out, lottery, methods=None, **changes):
    trainer = tiny.trainer(out, {"lottery": lottery, **(methods or {})}, **changes)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    before = tiny.weights(trainer.model)
    trainer.train()
    return trainer, watch, before


def removed(seen):
    return sum(int((~mask).sum()) for mask in seen["kept"].values())


def test_each_round_takes_the_same_number_of_the_original_weights(tmp_path):
    trainer, watch, _ = watched(tmp_path, {"sparsity": 0.7, "rounds": 3})
    total = trainer.model.bert.masks.size(trainer.model.bert)
    assert total == 4 * (4 * 32 * 32 + 2 * 32 * 64)
    counts = [removed(watch.after[step]) for step in range(1, 9)]
    expected = [round(total * (0.7 * done / 3)) for done in range(4)]
    assert counts == [expected[done] for done in (0, 1, 1, 2, 2, 3, 3, 3)]
    for step in range(2, 9):
        earlier, later = watch.after[step - 1]["kept"], watch.after[step]["kept"]
        assert not any((later[name] & ~earlier[name]).any() for name in later)
    logged = [entry["lottery_sparsity"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([expected[done] / total for done in (0, 0, 1, 1, 2, 2, 3, 3)])


def test_survivors_are_the_largest_of_what_was_trained(tmp_path):
    """The weights of the first phase are those of a run without pruning, up to its first pruning."""
    trainer = tiny.trainer(tmp_path, {"lottery": {"sparsity": 0.6, "rounds": 3}})
    seen = {}

    class Trained(tiny.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            names = prunable(trainer.model.bert)
            seen[state.global_step + 1] = {name: linear.weight.detach().clone() for name, linear in names.items()}

    trainer.add_callback(Trained())
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    flat = torch.cat([weight.abs().flatten() for weight in seen[2].values()])
    kept = torch.cat([mask.flatten() for mask in watch.after[2]["kept"].values()])
    assert flat[kept].min() > flat[~kept].max()
    shares = [float(mask.double().mean()) for mask in watch.after[2]["kept"].values()]
    assert max(shares) - min(shares) > 0.001  # ranked over all matrices, not within each


@pytest.mark.parametrize("rewind_to", [0, 1])
def test_rewinding_is_exact_and_the_optimizer_begins_anew(tmp_path, rewind_to):
    _, watch, before = watched(tmp_path, {"rounds": 3, "rewind_to": rewind_to}, warmup_steps=0)
    target = watch.after[rewind_to]["weights"] if rewind_to else before
    assert rewind_to == 0 or not torch.equal(target["bert.encoder.layer.0.output.dense.weight"],
                                             before["bert.encoder.layer.0.output.dense.weight"])  # fmt: skip
    for step in (2, 4, 6):
        after = watch.after[step]
        masked = {linear: after["kept"][name] for name, linear in names_of_weights().items()}
        for name, weight in after["weights"].items():
            expected = torch.where(masked[name], target[name], 0.0) if name in masked else target[name]
            assert torch.equal(weight, expected), (step, name)
        assert after["states"] == 0
        assert watch.after[step + 1]["states"] > 0
    assert watch.after[5]["snapshot"] is not None
    assert watch.after[6]["snapshot"] is None  # nothing is rewound any more, so there is no copy to keep
    for step in (7, 8):
        after = watch.after[step]
        for name, parameter in names_of_weights().items():
            assert not after["weights"][parameter][~after["kept"][name]].any()
            assert not torch.equal(after["weights"][parameter], watch.after[6]["weights"][parameter])


def names_of_weights():
    """The name of the parameter of every matrix that is pruned."""
    model = tiny.model()
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: by_id[id(linear.weight)] for name, linear in prunable(model.bert).items()}


def test_signs_are_kept_on_rewinding(tmp_path):
    _, watch, before = watched(tmp_path, {"rounds": 3, "signs": "keep_sign"})
    name, parameter = "layer.1.up", "bert.encoder.layer.1.intermediate.dense.weight"
    kept, weight, first = watch.after[2]["kept"][name], watch.after[2]["weights"][parameter], before[parameter]
    sigma = first.std(correction=0)
    assert torch.equal(weight, torch.where(kept, first.sign() * sigma, 0.0))
    bias = "bert.encoder.layer.1.intermediate.dense.bias"
    assert torch.equal(watch.after[2]["weights"][bias], before[bias])


def test_pruned_weights_have_no_gradient():
    """So clipping goes by the survivors alone, and their optimizer state stays zero."""
    model = tiny.model({"lottery": {}})
    mask = model.bert.masks.kept()["layer.0.up"]
    mask[3] = False
    model(**tiny.batch(4, objective="mlm")).loss.backward()
    gradient = model.bert.encoder.layer[0].intermediate.dense.weight.grad
    assert not gradient[3].any()
    assert gradient[4].any()


def test_the_learning_rate_falls_to_its_end_and_rises_anew_in_every_phase(tmp_path):
    _, watch, _ = watched(tmp_path, {"rounds": 3}, budget="16steps", warmup_steps=0.25, learning_rate=1e-3)
    phase = [0.0, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3]
    assert [watch.rates[step] for step in range(16)] == pytest.approx(phase * 4)


def test_a_long_step_prunes_for_all_the_rounds_it_has_passed(tmp_path):
    """Ranked by what was trained, and rewound once."""
    trainer, watch, _ = watched(tmp_path, {"sparsity": 0.6, "rounds": 9}, budget="4steps")
    total = trainer.model.bert.masks.size(trainer.model.bert)
    assert [removed(watch.after[step]) for step in (1, 2, 3)] == [
        round(total * (0.6 * done / 9)) for done in (2, 5, 7)
    ]
    assert removed(watch.after[4]) == removed(watch.after[3])  # nothing would train what the end rewinds
    own = [event for event in trainer.model.config.events if event["what"].startswith("pruned")]
    assert [event["step"] for event in own] == [1, 1, 2, 2, 2, 3, 3]
    assert own[1]["span"] == [0.25, pytest.approx(0.3)]


def test_phases_are_read_from_the_events():
    config = tiny.config()
    assert rounds_of(config) is None
    begin(config, 10, 0.2, rounds=3)
    now = rounds_of(config)
    assert (now.step, now.since, now.before, now.done) == (10, 0.2, 0, 0)
    assert [now.until(3, done) for done in range(4)] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert [now.due(3, fraction) for fraction in (0.2, 0.39, 0.41, 0.61, 1.0)] == [0, 0, 1, 2, 3]
    note_prunings(config, 20, 0.45, 3, number=1, sparsity=0.6)
    assert config.events[-1]["span"] == [0.45, pytest.approx(0.6)]
    assert "sparsity of 0.2000, in round 1 of 3" in config.events[-1]["what"]
    assert rounds_of(config).due(3, 0.45) == 0
    assert rounds_of(config).due(3, 0.81) == 2


def test_a_model_in_mid_rounds_goes_on_with_them_in_another_run(tmp_path):
    """Its rounds are divided over the new budget, and the old schedule is no more."""
    first = tiny.trainer(tmp_path, {"lottery": {"sparsity": 0.6, "rounds": 3}}, save_strategy="steps", save_steps=3)
    first.add_callback(tiny.StopAfter(3))
    first.train()
    model = EffptBertForMaskedLM.from_pretrained(tmp_path / "checkpoint-3")
    assert model.methods[0].needs_snapshot
    weights = tiny.weights(model)
    second = tiny.EffptTrainer(
        model, tiny.arguments(tmp_path, budget="9steps"), train_dataset=tiny.rows(), processing_class=tiny.tokenizer()
    )
    watch = Watch(second)
    second.add_callback(watch)
    second.train()
    assert [event["what"].split(",")[0] for event in model.config.events] == [
        "began 3 rounds of pruning",
        "pruned to a sparsity of 0.2000",
        "began 2 rounds of pruning",
        "pruned to a sparsity of 0.4000",
        "pruned to a sparsity of 0.6000",
    ]
    assert [event["step"] for event in model.config.events] == [0, 2, 0, 3, 6]
    assert all(0 <= rate <= 1e-3 for rate in watch.rates.values())
    bias = "bert.encoder.layer.0.output.dense.bias"
    assert torch.equal(watch.after[3]["weights"][bias], weights[bias])


def test_after_stacking_the_rounds_begin_and_rewind_to_the_grown_model(tmp_path):
    trainer, watch, before = watched(
        tmp_path, {"rounds": 1}, {"stacking": {"depth": 2, "at": [0.5]}}, budget="8steps", warmup_steps=0
    )
    events = [(event["step"], event["method"]) for event in trainer.model.config.events]
    assert events == [(4, "stacking"), (4, "lottery"), (6, "lottery")]
    grown = watch.after[4]
    assert grown["states"] == 0
    name = "bert.encoder.layer.2.output.dense.bias"
    assert torch.equal(watch.after[6]["weights"][name], grown["weights"][name])
    assert not torch.equal(watch.after[6]["weights"][name], before[name])
    assert torch.equal(grown["weights"][name], grown["weights"]["bert.encoder.layer.0.output.dense.bias"])


def test_notes_are_rewound_along(tmp_path):
    notes = {"k": 2, "min_count": 5, "max_count": 7}
    trainer = tiny.trainer(tmp_path, {"lottery": {"rounds": 1}, "tnf": notes})
    seen = []

    class Notes(tiny.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(trainer.model.bert.notes.vectors.clone())

    trainer.add_callback(Notes())
    before = trainer.model.bert.notes.vectors.clone()
    trainer.train()
    assert not torch.equal(seen[2], before)
    assert torch.equal(seen[3], before)


def test_rewinding_to_a_step_that_the_first_phase_does_not_have_is_refused(tmp_path):
    with pytest.raises(EffptError, match=r"until step 9, and the budget is 8 steps"):
        tiny.trainer(tmp_path, {"lottery": {"rounds": 2, "rewind_to": 3}})
    tokens = 8 * 4 * tiny.LENGTH
    trainer = tiny.trainer(tmp_path, {"lottery": {"rounds": 2, "rewind_to": 6}}, budget=f"{tokens}tokens")
    with pytest.raises(EffptError, match=r"rewind_to` is 6, but the first phase had 3 steps"):
        trainer.train()


def test_zeros_cost_as_much_as_any_other_weight(tmp_path):
    """The clock is charged the same for a pruned model as for a whole one: nothing is saved."""
    trainer = tiny.trainer(tmp_path, {"lottery": {"sparsity": 0.9, "rounds": 1}})
    spent = []

    class CostReport(tiny.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            spent.append(trainer.clock.flops)

    trainer.add_callback(CostReport())
    trainer.train()
    assert spent[-1] == 8 * spent[0]
    backbone = trainer.model.bert
    assert int(backbone.masks.left(backbone)) < 0.11 * backbone.masks.size(backbone)
