"""`compress` in runs of the Trainer."""

import pytest
import torch

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.width import widths_of
from tests import tiny
from tests.contract.runs import assert_same_optimizer

WIDTHS = {"head_keep": 0.5, "ffn_keep": 0.5}


def run(tmp_path, settings, others=None, **changes):
    trainer = tiny.trainer(tmp_path, {"compress": settings, **(others or {})}, **changes)
    trainer.train()
    return trainer


class Watch(tiny.StopAfter):
    """Keeps what holds after each step."""

    def __init__(self, trainer, look):
        super().__init__(99)
        self.trainer, self.look, self.seen = trainer, look, []
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.look(self.trainer))


def test_cut_at_its_fraction_and_the_rate_falls_on(tmp_path):
    whole = tiny.trainer(tmp_path, {})
    whole.train()
    trainer = tiny.trainer(tmp_path, {"compress": {"depth": 2, **WIDTHS, "at": 0.5}})
    watch = Watch(trainer, lambda of: (len(stack_of(of.model.bert).order), widths_of(of.model.bert)[0][0]))
    trainer.train()
    assert watch.seen == [(4, 2)] * 3 + [(2, 1)] * 5

    def rates(of):
        return [entry["learning_rate"] for entry in of.state.log_history if "learning_rate" in entry]

    assert rates(trainer) == rates(whole)
    assert trainer.lr_scheduler.get_last_lr()[0] == 0.0
    first, *_, last = [entry["flops"] for entry in trainer.state.log_history if "loss" in entry]
    before_last = [entry["flops"] for entry in trainer.state.log_history if "loss" in entry][-2]
    assert last - before_last < 0.5 * first


def test_weights_and_optimizer_state_of_what_stays(tmp_path):
    """The run that is cut after its last step is the whole one but for that."""
    whole = tiny.trainer(tmp_path, {})
    whole.train()
    trainer = run(tmp_path, {**WIDTHS, "at": 0.99, "importance": "magnitude"})
    assert widths_of(trainer.model.bert) == [[1, widths_of(trainer.model.bert)[i][1]] for i in range(4)]
    large = dict(whole.model.named_parameters())
    for index in range(4):
        name = f"bert.encoder.layer.{index}.attention.self.query.weight"
        old, new = large[name], dict(trainer.model.named_parameters())[name]
        assert new.shape == (16, 32)
        (head,) = [head for head in (0, 1) if torch.equal(old[16 * head : 16 * head + 16], new)]
        ours, theirs = trainer.optimizer.state[new], whole.optimizer.state[old]
        assert ours["step"] == theirs["step"] == 8
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(ours[moment], theirs[moment][16 * head : 16 * head + 16])
    present = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert set(trainer.optimizer.state) <= present == set(trainer.model.parameters())


@pytest.mark.usefixtures("counted")
def test_measuring_is_charged_and_leaves_no_other_trace(tmp_path):
    free = run(tmp_path, {**WIDTHS, "at": 0.99, "importance": "magnitude"}, dropout=0.1)
    random = torch.get_rng_state()
    measured = run(tmp_path, {**WIDTHS, "at": 0.99, "importance": "michel"}, dropout=0.1)
    assert torch.equal(random, torch.get_rng_state())
    assert measured.model.training
    assert all(module.training for module in measured.model.modules())
    assert measured.clock.tokens - free.clock.tokens == 8 * 4 * tiny.LENGTH
    # 8 passes as in training, without the gradients of weights
    assert 1.5 < measured.clock.flops / free.clock.flops < 1.6
    assert measured.clock.steps == 8
    for name, weight in tiny.weights(free.model).items():
        if "encoder" not in name:
            assert torch.equal(weight, dict(measured.model.named_parameters())[name]), name


def test_importance_is_that_of_the_loss(tmp_path):
    """A head whose output does nothing goes first, however large its weights are."""
    trainer = tiny.trainer(tmp_path, {"compress": {"head_keep": 0.5, "at": 0.1}}, learning_rate=1e-9)
    layer = layers_of(trainer.model.bert)[1]
    with torch.no_grad():
        layer.attention.self.query.weight[:16] *= 20
        layer.attention.output.dense.weight[:, :16] = 0
    kept = layer.attention.self.value.weight[16:].clone()
    trainer.train()
    assert torch.allclose(layer.attention.self.value.weight, kept, atol=1e-7)


def test_the_control_has_the_same_shape_and_is_drawn_by_lot(tmp_path):
    settings = {"depth": 3, **WIDTHS, "at": 0.5}
    few = {"layers": 6, "budget": "4steps"}
    runs = [run(tmp_path, {**settings, "importance": name}, **few) for name in ("michel", "random", "random")]
    other = run(tmp_path, {**settings, "importance": "random"}, **few, seed=8)
    chosen, control, again = (of.model for of in runs)
    assert control.num_parameters() == chosen.num_parameters() == other.model.num_parameters()
    assert control.export().num_parameters() == chosen.export().num_parameters()
    assert runs[0].clock.tokens == runs[1].clock.tokens
    # neurons of the last layer cost less, since it computes masked positions only
    assert runs[0].clock.flops == pytest.approx(runs[1].clock.flops, rel=0.01)
    for name, weight in tiny.weights(control).items():
        assert torch.equal(weight, dict(again.named_parameters())[name]), name
    orders = {tuple(of.config.layer_order) for of in (chosen, control, other.model)}
    assert tuple(chosen.config.layer_order) == (0, 2, 4)
    assert len(orders) > 1


def test_the_control_keeps_as_many_in_each_layer(tmp_path):
    """Layers are cut unequally by importance, and the control's alike."""
    models = []
    for importance in ("michel", "random"):
        trainer = tiny.trainer(tmp_path, {"compress": {"ffn_keep": 0.5, "at": 0.1, "importance": importance}})
        with torch.no_grad():
            layers_of(trainer.model.bert)[2].output.dense.weight *= 0.01
        trainer.train()
        models.append(trainer.model)
    widths = [widths_of(model.bert) for model in models]
    assert widths[0] == widths[1]
    assert widths[0][2][1] < 32 < max(neurons for _, neurons in widths[0])
    assert not torch.equal(*(layers_of(model.bert)[2].intermediate.dense.weight for model in models))


@pytest.mark.parametrize(("importance", "places"), [("michel", (3, 4, 6)), ("gates", (3, 4))])
def test_resumed_run_equals_the_straight_one(tmp_path, importance, places):
    """Before, between and after two cuts; with gates in mid-learning. The control is resumed by tests of contract."""
    settings = {**WIDTHS, "depth": 3, "importance": importance, "at": 0.5, "rounds": 2, "until": 0.6}
    straight = run(tmp_path, settings, dropout=0.1, saved=places)
    for at in places:
        resumed = tiny.trainer(tmp_path / "resumed", {"compress": settings}, dropout=0.1)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        assert [event["step"] for event in resumed.model.config.events] == [4, 5]
        assert resumed.model.config.layer_widths == straight.model.config.layer_widths
        assert resumed.clock.flops == straight.clock.flops
        tiny.assert_same_weights(straight.model, resumed.model)
        assert_same_optimizer(straight, resumed)


def test_gates_learn_only_before_the_cuts(tmp_path):
    trainer = tiny.trainer(
        tmp_path, {"compress": {**WIDTHS, "importance": "gates", "at": 0.6}}, budget="10steps", logging_steps=1
    )

    def moved(of):
        gates = list(of.model.bert.width_gates.parameters())
        return [float((gate.detach() - 1).abs().max()) > 0 for gate in gates]

    watch = Watch(trainer, moved)
    trainer.train()
    assert watch.seen[:5] == [[False] * 8] * 5
    assert watch.seen[5:] == [[]] * 5
    assert (
        trainer.model.config.events[0]["what"]
        == "cut to 4 layers of 1 heads and 32 neurons: heads and neurons by gates"
    )
    groups = trainer.optimizer.param_groups
    assert groups[-1]["params"] == []
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in trainer.model.parameters()}


@pytest.mark.parametrize("heads", [0.0, 0.3])
def test_layerdrop_prepares_and_then_rests(tmp_path, heads):
    trainer = tiny.trainer(
        tmp_path,
        {"compress": {"depth": 2, **WIDTHS, "at": 0.5}, "layerdrop": {"p": 0.6, "heads": heads}},
        budget="20steps",
    )
    watch = Watch(trainer, lambda of: bool(stack_of(of.model.bert).dropped))
    trainer.train()
    assert any(watch.seen[:10])
    assert not any(watch.seen[10:])
    assert len(stack_of(trainer.model.bert).order) == 2


def test_stacking_grows_first_and_not_again(tmp_path):
    ledger = {"stacking": {"depth": 1, "at": [0.2, 0.4]}}
    trainer = run(tmp_path, {"depth": 2, **WIDTHS, "at": 0.5}, ledger)
    told = [(event["step"], event["method"]) for event in trainer.model.config.events]
    assert told == [(2, "stacking"), (4, "stacking"), (4, "compress")]
    assert trainer.model.config.layer_order == [0, 2]


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
@pytest.mark.parametrize("importance", ["michel", "gates"])
def test_of_a_model_with_a_generator_the_main_one_is_cut(tmp_path, objective, importance):
    trainer = run(tmp_path, {"depth": 2, **WIDTHS, "at": 0.5, "importance": importance}, objective=objective)
    generator = trainer.model.generator.electra
    assert len(layers_of(generator)) == 4
    own = trainer.model.generator.config
    assert widths_of(generator) == [[own.num_attention_heads, own.intermediate_size]] * 4
    assert [heads for heads, _ in widths_of(trainer.model.electra)] == [1, 2, 1, 2]
    words = trainer.model.electra.embeddings.word_embeddings
    assert words.weight is generator.embeddings.word_embeddings.weight
    exported = trainer.model.export()
    assert exported.config.num_hidden_layers == 2


def test_what_cannot_follow_is_refused_when_widths_change_only(tmp_path):
    with pytest.raises(EffptError, match="`compress` cuts parameters in mid-run, and `Adafactor` cannot follow"):
        run(tmp_path, WIDTHS, optim="adafactor")
    trainer = run(tmp_path, {"depth": 2}, optim="adafactor")
    assert trainer.model.config.layer_order == [0, 2]


def test_a_finished_model_is_not_cut_again(tmp_path):
    trainer = run(tmp_path, {**WIDTHS, "at": 0.5}, saved=[8])
    again = type(trainer.model).from_pretrained(tmp_path / "checkpoint-8")
    assert widths_of(again.bert) == widths_of(trainer.model.bert)
    assert not again.methods[0].changes_parameters
    assert not again.methods[0].advance(again.bert, RunContext(9, 1.0))


def test_a_new_run_on_a_cut_model_says_what_is_left(tmp_path, caplog):
    trainer = run(tmp_path, {**WIDTHS, "at": 0.5}, saved=[8])
    again = type(trainer.model).from_pretrained(tmp_path / "checkpoint-8")
    with caplog.at_level("WARNING"):
        again.methods[0].prepare(again.bert, RunContext(0, 0.0))
    assert "of 1 cuts by `compress` 0 are left to make" in caplog.text
    with pytest.raises(EffptError, match=r"cut already.*set only `compress.depth`"):
        tiny.model({"compress": WIDTHS}, layer_widths=again.config.layer_widths)
    tiny.model({"compress": {"depth": 2}}, layer_widths=again.config.layer_widths)
