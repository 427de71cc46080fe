"""Guarantees of every objective with a generator, alone and with the methods that change depth."""

import pytest
import torch

from hf_effpt.core.anatomy import generator_of
from hf_effpt.core.depth import stack_of
from hf_effpt.core.objectives import OBJECTIVES
from tests import tiny

from .runs import assert_tied

JOINT = [name for name in OBJECTIVES if name != "mlm"]


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_resumed_run_equals_the_straight_one_without_the_generators_dropout(tmp_path, objective):
    """The main model's dropout then moves the run's random numbers on by itself."""

    def run():
        args = tiny.arguments(tmp_path, save_strategy="steps", save_steps=4)
        tiny.set_seed(args.seed)
        drop = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "generator_dropout": False}
        model = tiny.joint(objective, **drop)
        return tiny.EffptTrainer(model, args, train_dataset=tiny.rows(), processing_class=tiny.tokenizer())

    straight = run()
    straight.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    tiny.assert_same_weights(straight.model, resumed.model)


@pytest.mark.parametrize("objective", JOINT)
def test_micro_batches_and_processes_do_not_change_a_step(tmp_path, objective):
    """8 rows at once, 4 and 4, 1 by 1: not even the samples differ, since they are those of the rows."""
    found = []
    for size, steps in ((8, 1), (4, 2), (1, 8)):
        trainer = tiny.trainer(
            tmp_path / str(size), objective=objective, per_device_train_batch_size=size, optim="sgd",
            gradient_accumulation_steps=steps, learning_rate=0.05, max_grad_norm=1e9, budget="3steps",
        )  # fmt: skip
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, tiny.weights(trainer.model)))
    for losses, weights in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        for name, weight in found[0][1].items():
            assert torch.allclose(weight, weights[name], atol=2e-5), name


# With the methods that change depth.


def grown(tmp_path, objective, auxiliary, **settings):
    """A trainer whose run has grown twice, with what is shared shared after each growth."""
    ledger = {"stacking": {"depth": 1, "at": [0.4, 0.7], "auxiliary": auxiliary}}
    trainer = tiny.trainer(tmp_path, ledger, objective=objective, **settings)
    depths = []

    class Watch(tiny.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            depth = len(stack_of(trainer.model.electra).order)
            along = len(stack_of(generator_of(trainer.model.electra)).order)
            assert along == (depth if auxiliary == "grow" else 4)
            if depth not in depths:
                depths.append(depth)
                assert_tied(trainer.model)

    trainer.add_callback(Watch())
    trainer.train()
    assert depths == [1, 2, 4]
    return trainer


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
@pytest.mark.parametrize("auxiliary", ["keep", "grow"])
def test_growth_keeps_what_is_shared(tmp_path, objective, auxiliary):
    exported = grown(tmp_path, objective, auxiliary).model.export_generator()
    assert exported.config.num_hidden_layers == 4
    assert "layer_order" not in exported.config.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "auxiliary", "steps", "rate"), [("electra", "keep", 160, 7e-3), ("mcbert", "grow", 220, 5e-3)]
)
def test_growth_keeps_what_is_learned(tmp_path, objective, auxiliary, steps, rate):
    """On a toy, the loss is below its floor before and after each growth."""
    trainer = grown(
        tmp_path, objective, auxiliary, budget=f"{steps}steps", learning_rate=rate, logging_steps=5,
        per_device_train_batch_size=16,
    )  # fmt: skip
    name = trainer.model.main_loss_name
    history = [entry for entry in trainer.state.log_history if name in entry]
    for first, last in ((0.2, 0.4), (0.5, 0.7), (0.8, 1.0)):
        stage = [entry for entry in history if first < entry["clock"] <= last]
        gap = sum(entry["floor"] - entry[name] for entry in stage) / len(stage)
        assert gap > 0, (first, gap)


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_layerdrop_never_drops_layers_of_the_generator(tmp_path, objective):
    """And all micro-batches of a step drop the same layers of the main model."""
    ledger = {"layerdrop": {"p": 0.4}}
    trainer = tiny.trainer(tmp_path, ledger, objective=objective, gradient_accumulation_steps=2, budget="8steps")
    ran = {"main": 0, "generator": 0}

    def counting(name):
        return lambda *_: ran.__setitem__(name, ran[name] + trainer.model.training)

    for name, encoder in (("main", trainer.model.electra), ("generator", trainer.model.generator.electra)):
        for layer in stack_of(encoder).children():
            layer.attention.self.value.register_forward_hook(counting(name))
    seen = []

    class Watch(tiny.TrainerCallback):
        def on_substep_end(self, *args, **kwargs):
            seen.append(ran["main"])

        def on_step_end(self, *args, **kwargs):
            seen.append(ran["main"])

    trainer.add_callback(Watch())
    trainer.train()
    assert ran["generator"] == 8 * 2 * 4
    assert 0 < ran["main"] < 8 * 2 * 4
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert steps[::2] == steps[1::2]
