"""The growth operators, what becomes of the optimizer's state, and what learns meanwhile."""

import pytest
import torch
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormModel

from hf_effpt.core.context import RunContext
from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.freezing import freeze
from hf_effpt.methods import Stacking
from hf_effpt.methods.stacking.operators import OPERATORS, arrange
from tests import tiny

GROWS = {
    "stack": ([0, 1, 0, 1], [0, 1, 2, 3]),
    "interpolate": ([0, 0, 1, 1], [0, 2, 1, 3]),
    "midas": ([0, 1, 0, 1], [0, 1, 2, 3]),
    "append_top": ([0, 1, 0, 1], [0, 1, 2, 3]),
}


@pytest.mark.parametrize(
    ("operator", "depth", "grown", "block", "sources"),
    [
        ("stack", 2, 8, 2, [0, 1] * 4),
        ("stack", 3, 5, 3, [0, 1, 2, 0, 1]),
        ("interpolate", 2, 6, 2, [0, 0, 0, 1, 1, 1]),
        ("midas", 2, 4, 2, [0, 1, 0, 1]),
        ("midas", 4, 6, 2, [0, 1, 0, 1, 2, 3]),
        ("midas", 6, 8, 2, [0, 1, 2, 3, 2, 3, 4, 5]),
        ("append_top", 6, 9, 3, [0, 1, 2, 3, 4, 5, 3, 4, 5]),
    ],
)
def test_sources(operator, depth, grown, block, sources):
    assert OPERATORS[operator](depth, grown, block) == sources


def test_trained_layers_stay_where_they_are_so_that_their_optimizer_state_does():
    assert arrange((0, 1), [0, 0, 1, 1]) == ([0, 2, 1, 3], [(0, 2), (1, 3)])
    assert arrange((0, 2, 1, 3), [0, 1, 1, 2, 3, 3]) == ([0, 2, 4, 1, 3, 5], [(2, 4), (3, 5)])


@pytest.mark.parametrize("operator", GROWS)
def test_each_layer_begins_as_its_source(operator):
    torch.manual_seed(0)
    model = tiny.model({"stacking": {"depth": 2, "at": [0.5], "operator": operator}}).eval()
    stack = stack_of(model.bert)
    before = [dict(stack[index].state_dict()) for index in (0, 1)]
    before = [{name: tensor.clone() for name, tensor in layer.items()} for layer in before]
    model.methods[0].advance(model.bert, RunContext(4, 0.5))
    sources, order = GROWS[operator]
    assert list(stack.order) == order
    for index, source in zip(order, sources, strict=True):
        for name, tensor in stack[index].state_dict().items():
            assert torch.equal(tensor, before[source][name])
    pointers = [parameter.data_ptr() for parameter in stack.parameters()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("operator", GROWS)
def test_a_grown_model_exports_in_the_order_it_runs(operator):
    model = tiny.model({"stacking": {"depth": 2, "at": [0.5], "operator": operator}}).eval()
    ids = torch.randint(5, tiny.VOCAB, (2, 8))
    for fraction in (0.1, 0.5):
        model.methods[0].advance(model.bert, RunContext(4, fraction))
        stock = model.export()
        assert stock.config.num_hidden_layers == (2 if fraction < 0.5 else 4)
        assert torch.equal(stock(ids).logits, model(ids).logits)
        indices = [layer.attention.self.layer_idx for layer in stock.bert.encoder.layer]
        assert indices == list(range(len(indices)))


def test_identity_changes_nothing_in_a_pre_norm_model():
    torch.manual_seed(0)
    config = RobertaPreLayerNormConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    )
    model = RobertaPreLayerNormModel(config).eval()
    method = Stacking(depth=2, at=[0.5], operator="identity")
    method.bind(config, {})
    method.inject(model)
    ids = torch.randint(5, 90, (2, 8))
    shallow = model(ids).last_hidden_state
    method.advance(model, RunContext(3, 0.5))
    assert len(stack_of(model).active) == 4
    assert torch.equal(model(ids).last_hidden_state, shallow)


def run_with(tmp_path, optimizer_state, **settings):
    method = {"depth": 2, "at": [0.5], "optimizer_state": optimizer_state}
    trainer = tiny.trainer(tmp_path, {"stacking": method}, budget="8steps", **settings)
    seen = {}
    trainer.add_callback(AfterGrowth(trainer, seen))
    trainer.train()
    return trainer, seen


class AfterGrowth(tiny.TrainerCallback):
    """Keeps the state of the optimizer as the growth after step 4 leaves it, and before."""

    def __init__(self, trainer, seen):
        self.trainer, self.seen = trainer, seen

    def _now(self):
        states = self.trainer.optimizer.state
        names = dict(self.trainer.model.named_parameters())
        return {
            name: {key: value.clone() for key, value in states[parameter].items()}
            for name, parameter in names.items()
            if parameter in states
        }

    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 3:  # of the fourth step
            self.seen["before"] = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.seen["after"] = self._now()


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
def test_copy_moves_averages_and_step_together(tmp_path, optim):
    trainer, seen = run_with(tmp_path, "copy", optim=optim)
    assert any(".layer.2." in name for name in seen["after"])
    for name, state in seen["after"].items():
        source = name.replace(".layer.2.", ".layer.0.").replace(".layer.3.", ".layer.1.")
        assert set(state) == set(seen["before"][source])
        for key, value in state.items():
            assert torch.equal(value, seen["before"][source][key]), name
    pointers = [value.data_ptr() for state in trainer.optimizer.state.values() for value in state.values()]
    assert len(set(pointers)) == len(pointers)


def test_keep_leaves_the_old_and_gives_the_new_none(tmp_path):
    _, seen = run_with(tmp_path, None)
    assert seen["after"].keys() == seen["before"].keys()
    for name, state in seen["before"].items():
        assert all(torch.equal(value, seen["after"][name][key]) for key, value in state.items())


def test_reset_begins_anew_for_all(tmp_path):
    trainer, seen = run_with(tmp_path, "reset")
    assert seen["after"] == {}
    steps = {float(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {4.0}


@pytest.mark.parametrize(("kind", "first"), [("keep", 1.0), ("copy", 1.0), ("reset", 1.0)])
@pytest.mark.parametrize("beta2", [0.999, 0.95])
def test_first_update_after_a_growth_is_one_learning_rate(kind, first, beta2):
    """Under a constant gradient, for old parameters and new ones: whatever becomes of the state, it is consistent."""

    model = tiny.model({"stacking": {"depth": 2, "at": [0.5], "optimizer_state": kind}})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, beta2), eps=0.0, weight_decay=0.0)
    stack = stack_of(model.bert)

    def step():
        for index in stack.order:
            for parameter in stack[index].parameters():
                parameter.grad = torch.full_like(parameter, 0.25)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(20):
        step()
    model.methods[0].advance(model.bert, RunContext(20, 0.5, model=model, optimizer=optimizer))
    before = [parameter.detach().clone() for parameter in stack.parameters()]
    step()
    for old, parameter in zip(before, stack.parameters(), strict=True):
        assert torch.allclose((old - parameter) / 1e-3, torch.full_like(parameter, first), atol=1e-3)


class Watch(tiny.TrainerCallback):
    """What learns in each step, and what each step has cost."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.learning, self.flops = trainer, [], [], []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        with_grad = {name for name, p in self.trainer.model.named_parameters() if p.grad is not None}
        self.learning.append(with_grad)
        self.steps.append(tiny.weights(self.trainer.model))

    def on_step_end(self, args, state, control, **kwargs):
        self.flops.append(self.trainer.clock.flops)


APPEND = {"stacking": {"depth": 1, "at": [0.25, 0.5], "operator": "append_top", "joint_at": 0.75}}


def watched(tmp_path, **settings):
    ledger = {"stacking": {**APPEND["stacking"], "depth": [1, 2]}}
    trainer = tiny.trainer(tmp_path, ledger, weight_decay=0.5, max_grad_norm=0.0, **settings)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    return trainer, watch


def layers_in(names):
    return sorted({int(name.split(".layer.")[1].split(".")[0]) for name in names if ".layer." in name})


def test_only_what_was_added_last_learns_until_the_joint_stage(tmp_path):
    trainer, watch = watched(tmp_path)
    assert [layers_in(names) for names in watch.learning] == [[0]] * 2 + [[1]] * 2 + [[2, 3]] * 2 + [[0, 1, 2, 3]] * 2
    word = "bert.embeddings.word_embeddings.weight"
    assert [word in names for names in watch.learning] == [True] * 2 + [False] * 4 + [True] * 2
    assert all("cls.predictions.transform.dense.weight" in names for names in watch.learning)
    # bit for bit, in spite of the weight decay: the decoder is tied to the table of words
    assert trainer.model.cls.predictions.decoder.weight is trainer.model.bert.embeddings.word_embeddings.weight
    for name, weight in watch.steps[2].items():
        if name.startswith("bert.embeddings.") or ".layer.0." in name:
            assert torch.equal(weight, watch.steps[5][name]), name
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_frozen_layers_cost_their_forward_only(tmp_path):
    """3n falls to n + 2k layers' worth: with n of 4 and k of 2 layers, 8 of 12."""
    _, watch = watched(tmp_path)
    cost = [after - before for before, after in zip([0, *watch.flops], watch.flops, strict=False)]
    plain = tiny.trainer(tmp_path, layers=4)
    two = tiny.trainer(tmp_path, layers=3)
    plain.train()
    two.train()
    layer = (plain.clock.flops - two.clock.flops) / 8  # forward and backward of one
    assert cost[7] == plain.clock.flops / 8
    # also the gradient of the first layer's input is not needed: one more third of its 2 of 3 backward parts at most
    assert cost[4] <= cost[7] - 2 * layer * 2 / 3
    assert cost[4] >= cost[7] - 3 * layer * 2 / 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_kept_for_the_backward_pass_below_what_learns(checkpointing):
    model = tiny.model(APPEND_2).train()
    (method,) = model.methods
    tiny.checkpointing(model, on=checkpointing)
    rests = []
    stack_of(model.bert)[0].register_forward_hook(lambda module, args, output: rests.append(not output.requires_grad))
    batch = tiny.batch(4, objective="mlm")
    kept = []
    for fraction in (0.3, 0.8):
        method.advance(model.bert, RunContext(1, fraction))
        freeze(model.bert, method.frozen(model.bert, RunContext(1, fraction, seed=0)))
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**batch).loss.backward()
        kept.append(sum(sizes))
        below = list(stack_of(model.bert)[0].parameters())
        assert all((parameter.grad is None) == (fraction < 0.75) for parameter in below)
        model.zero_grad()
    assert kept[0] < (0.85 if checkpointing else 0.75) * kept[1]
    assert rests == [True, False]


APPEND_2 = {"stacking": {"depth": 2, "at": [0.25], "operator": "append_top", "joint_at": 0.75}}


def test_what_the_user_has_frozen_stays_so():
    model = tiny.model(APPEND_2).train()
    (method,) = model.methods
    model.bert.embeddings.position_embeddings.weight.requires_grad_(False)
    for fraction in (0.0, 0.3, 0.8):
        method.advance(model.bert, RunContext(1, fraction))
        freeze(model.bert, method.frozen(model.bert, RunContext(1, fraction, seed=0)))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["bert.embeddings.position_embeddings.weight"]


def test_a_discriminators_table_rests_for_the_generator_too():
    model = tiny.joint(methods=APPEND_2).train()
    (method,) = model.methods
    method.advance(model.electra, RunContext(1, 0.3))
    freeze(model.electra, method.frozen(model.electra, RunContext(1, 0.3, seed=0)))
    model(**tiny.batch()).loss.backward()
    assert model.electra.embeddings.word_embeddings.weight.grad is None
    assert model.generator.electra.encoder.layer[0].output.dense.weight.grad is not None


def test_without_a_run_ligo_says_what_it_needs():
    model = tiny.model({"stacking": {"depth": 2, "at": [0.5], "operator": "ligo_depth"}})
    with pytest.raises(EffptError, match="`ligo_depth` learns its growths from text"):
        model.methods[0].advance(model.bert, RunContext(4, 0.5))
