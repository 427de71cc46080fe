"""Invariants 6 and 7 for every method and every allowed pair, with the masked-language objective and with a generator.

Six: eight steps equal some and a resumption, bit for bit. Seven: a run leaves a stock model with the same function,
which a process without the package loads. A class shares its straight runs.

Each method alone meets every objective and backbone, and with the masked-language objective of BERT every place to
resume at; there, and with ELECTRA, its steps have two micro-batches. Each pair and each variant is resumed at one of
the places, in rotation; of the pairs a third each meets ELECTRA and ModernBERT.
"""

import pytest
import torch
from transformers import AutoConfig

from hf_effpt.core.anatomy import layers_of
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.core.registry import METHODS
from hf_effpt.methods.stacking.ligo import learn_growth
from tests import tiny

from . import runs as contract
from .settings import SETTINGS, VARIANTS, allowed, ledgers, name_of

at_each = pytest.mark.parametrize("at", contract.RESUMED_AT)
SINGLES = [{}, *[ledger for ledger in ledgers() if len(ledger) == 1]]
PAIRS = [ledger for ledger in ledgers() if len(ledger) == 2]
methods = pytest.mark.parametrize("name", list(METHODS))
# Methods that change what a layer computes, which is of another class in each backbone.
into_layers = pytest.mark.parametrize("name", ["earlybert", "layerskip", "lottery"])
tracing = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
# One member of a pair off, as its settings have it: then the run is that of the other alone, bit for bit.
OFF = {"layerdrop": {"p": 0.0}, "tnf": {**SETTINGS["tnf"], "weight": 0.0}}
WITH_ONE_OFF = [
    (off, on) for off in OFF for on in SETTINGS if on != off and allowed({on: SETTINGS[on], off: OFF[off]})
]


def with_one_off(chosen):
    return pytest.mark.parametrize(("off", "on"), chosen)


def each(chosen):
    return pytest.mark.parametrize("ledger", chosen, ids=name_of)


@pytest.fixture(scope="class")
def runs(request, tmp_path_factory):
    return contract.Runs(tmp_path_factory.mktemp("runs"), request.cls)


@pytest.fixture(scope="class")
def exports(request, runs):
    """A finished run of each ledger, and one in the middle of its growths, with its training model; of a pair one."""
    alone = [(ledger, finished) for ledger in SINGLES for finished in (True, False)]
    pairs = [(ledger, place % 2 == 0) for place, ledger in enumerate(request.cls.pairs)]
    return [contract.exported(runs, "mlm", ledger, finished) for ledger, finished in alone + pairs]


def check_one_off(runs, folder, objective, off, on):
    """With dropout, so that the last layer is computed everywhere, whoever reads it."""
    other = {on: SETTINGS[on]}
    alone = runs(objective, other).model
    pair = runs.trainer_of(folder, objective, {**other, off: OFF[off]}, **runs.cut_of(other))
    pair.train()
    tiny.assert_same_weights(alone, pair.model)
    assert alone.config.layer_order == pair.model.config.layer_order


class MaskedLanguageModel:
    """Guarantees of a masked language model of either backbone."""

    backbone, pairs = "bert", PAIRS

    def test_export_is_stock_and_equal(self, exports):
        for folder, model in exports:
            stock = type(model).stock_class.from_pretrained(folder)
            probe = torch.load(folder / "probe.pt")
            assert torch.allclose(stock(probe["ids"]).logits, probe["logits"][""], atol=1e-6)
            assert stock.config.num_hidden_layers == len(model.config.layer_order or range(4))
            assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
            assert "methods" not in stock.config.to_dict()

    def test_some_export_is_shallower_than_its_target(self, exports):
        assert {AutoConfig.from_pretrained(folder).num_hidden_layers for folder, _ in exports} == {2, 4}

    def test_exports_load_in_a_clean_process(self, exports):
        contract.load_in_a_clean_process([folder for folder, _ in exports])

    def test_a_growth_lies_between_the_checkpoints(self, runs):
        """So that runs are resumed before and after a reshaping."""
        trainer = runs("mlm", {"stacking": SETTINGS["stacking"]})
        assert [event["step"] for event in trainer.model.config.events] == [3, 6]
        assert len(layers_of(trainer.model.backbone).order) == 4


class TestBert(MaskedLanguageModel):
    accumulates = True

    @methods
    def test_run_that_saves_no_activations_equals_the_straight_one(self, runs, name):
        contract.check_checkpointing(runs, {name: SETTINGS[name]})

    @methods
    @tracing
    def test_compiled_run_equals_the_straight_one(self, runs, name, counter):
        contract.check_compilation(runs, {name: SETTINGS[name]}, counter)

    @at_each
    @each(SINGLES)
    def test_resumed_run_equals_the_straight_one(self, runs, ledger, at):
        contract.check_resumption(runs, "mlm", ledger, at)

    @pytest.mark.parametrize("place", range(len(PAIRS)), ids=[name_of(ledger) for ledger in PAIRS])
    def test_resumed_run_of_a_pair_equals_the_straight_one(self, runs, place):
        contract.check_resumption(runs, "mlm", PAIRS[place], contract.RESUMED_AT[place % 3])

    @with_one_off(WITH_ONE_OFF)
    def test_a_pair_with_one_off_is_the_other_alone(self, runs, tmp_path, off, on):
        check_one_off(runs, tmp_path, "mlm", off, on)


class TestModernBert(MaskedLanguageModel):
    backbone, pairs, at = "modernbert", PAIRS[2::3], (4,)

    @into_layers
    def test_run_that_saves_no_activations_equals_the_straight_one(self, runs, name):
        contract.check_checkpointing(runs, {name: SETTINGS[name]})

    @into_layers
    @tracing
    def test_compiled_run_equals_the_straight_one(self, runs, name, counter):
        contract.check_compilation(runs, {name: SETTINGS[name]}, counter)

    @each(SINGLES)
    def test_resumed_run_equals_the_straight_one(self, runs, ledger):
        contract.check_resumption(runs, "mlm", ledger, at=4)

    @each(PAIRS[2::3])
    def test_resumed_run_of_a_pair_equals_the_straight_one(self, runs, ledger):
        contract.check_resumption(runs, "mlm", ledger, at=4)

    @with_one_off(WITH_ONE_OFF[::3])
    def test_a_pair_with_one_off_is_the_other_alone(self, runs, tmp_path, off, on):
        check_one_off(runs, tmp_path, "mlm", off, on)

    @pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("selection")])
    def test_resumed_variant_equals_the_straight_one(self, runs, variant):
        contract.check_resumption(runs, "mlm", VARIANTS[variant], at=4, dropout=0.0)


@pytest.fixture(scope="class")
def _short_lessons():
    """LiGO learns each growth in a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(learn_growth.__kwdefaults__, "steps", 10)
        yield


class TestWithoutDropout:
    """The last layer then computes masked positions only."""

    at = (4,)

    @each([{}, *({name: settings} for name, settings in SETTINGS.items())])
    def test_resumed_run_equals_the_straight_one(self, runs, ledger):
        contract.check_resumption(runs, "mlm", ledger, at=4, dropout=0.0)


@pytest.mark.usefixtures("_short_lessons")
class TestVariants:
    @pytest.mark.parametrize(
        ("variant", "at"), [(name, contract.RESUMED_AT[place % 3]) for place, name in enumerate(VARIANTS)]
    )
    def test_resumed_run_equals_the_straight_one(self, runs, variant, at):
        contract.check_resumption(runs, "mlm", VARIANTS[variant], at)

    @pytest.mark.parametrize("variant", ["ligo_depth", "pld", "supermask"])
    def test_run_that_saves_no_activations_equals_the_straight_one(self, runs, variant):
        contract.check_checkpointing(runs, VARIANTS[variant])

    @pytest.mark.parametrize("variant", ["pld", "supermask"])
    @tracing
    def test_compiled_run_equals_the_straight_one(self, runs, variant, counter):
        contract.check_compilation(runs, VARIANTS[variant], counter)


class WithGenerator:
    at = (4,)
    objective: str
    pairs: list[dict]

    def test_exports_load_in_a_clean_process(self, runs):
        """Every second run is exported from the middle; of the pairs, all of which export with BERT, every third."""
        exports = [
            contract.exported(runs, self.objective, ledger, finished=place % 2 == 0)
            for place, ledger in enumerate(SINGLES + self.pairs[::3])
        ]
        contract.load_in_a_clean_process([folder for folder, _ in exports])


class TestElectra(WithGenerator):
    objective, pairs, accumulates = "electra", PAIRS[::3], True

    @each(SINGLES + PAIRS[::3])
    def test_resumed_run_equals_the_straight_one(self, runs, ledger):
        contract.check_resumption(runs, "electra", ledger, at=4)

    @with_one_off(WITH_ONE_OFF[1::3])
    def test_a_pair_with_one_off_is_the_other_alone(self, runs, tmp_path, off, on):
        check_one_off(runs, tmp_path, "electra", off, on)


class TestMcBert(WithGenerator):
    objective, pairs = "mcbert", []

    @each(SINGLES)
    def test_resumed_run_equals_the_straight_one(self, runs, ledger):
        contract.check_resumption(runs, "mcbert", ledger, at=4)


OTHERS = sorted(set(OBJECTIVES) - {"mlm", "electra", "mcbert"})


class TestOtherObjectives:
    at = (4,)

    @pytest.mark.parametrize("objective", OTHERS)
    def test_resumed_run_equals_the_straight_one(self, runs, objective):
        contract.check_resumption(runs, objective, {}, at=4)

    def test_exports_load_in_a_clean_process(self, runs):
        exports = [contract.exported(runs, name, {}, finished=place != 1) for place, name in enumerate(OTHERS)]
        contract.load_in_a_clean_process([folder for folder, _ in exports])

    @pytest.mark.parametrize("objective", OTHERS)
    def test_exports_share_no_storage_with_the_training_model(self, objective):
        model = tiny.joint(objective)
        own = {p.data_ptr() for p in model.parameters()}
        for exported in (model.export(), model.export_generator()):
            assert not {p.data_ptr() for p in exported.parameters()} & own
        contract.assert_tied(model)


def test_exporting_leaves_the_training_model_as_it_is():
    model = tiny.model({"stacking": {"depth": 1, "at": [0.5, 0.6]}})
    before = tiny.weights(model)
    order = model.config.layer_order
    exported = model.export()
    assert model.config.layer_order == order
    assert not {p.data_ptr() for p in exported.parameters()} & {p.data_ptr() for p in model.parameters()}
    for name, weight in tiny.weights(model).items():
        assert torch.equal(weight, before[name])


class TestModernElectra(WithGenerator):
    objective, backbone, pairs = "electra", "modernbert", []

    @each(SINGLES)
    def test_resumed_run_equals_the_straight_one(self, runs, ledger):
        contract.check_resumption(runs, "electra", ledger, at=4)


class TestModernMcBert(WithGenerator):
    objective, backbone, pairs = "mcbert", "modernbert", []

    @each(SINGLES)
    def test_resumed_run_equals_the_straight_one(self, runs, ledger):
        contract.check_resumption(runs, "mcbert", ledger, at=4)
