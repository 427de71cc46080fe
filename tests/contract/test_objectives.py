"""What every objective with a generator owes, alone and with each method: exact resume, exact export, kept ties."""

import subprocess
import sys

import pytest
import torch

from hf_effpt.core.anatomy import generator_of
from hf_effpt.core.depth import stack_of
from hf_effpt.core.errors import EffptError
from hf_effpt.core.objectives import OBJECTIVES
from hf_effpt.models.generator import TIED
from tests import tiny

from .settings import SETTINGS, allowed, ledgers, name_of

JOINT = [name for name in OBJECTIVES if name != "mlm"]
# Each objective alone, and the two published ones with every method and pair of methods.
CASES = [(objective, {}) for objective in JOINT] + [
    (objective, ledger) for objective in ("electra", "mcbert") for ledger in ledgers()
]
cases = pytest.mark.parametrize(
    ("objective", "ledger"), CASES, ids=[f"{objective}-{name_of(ledger)}" for objective, ledger in CASES]
)


def assert_tied(model):
    for generators, own in TIED.items():
        assert model.get_parameter(generators) is model.get_parameter(own), own
    table = model.electra.embeddings.word_embeddings.weight
    assert model.generator.generator_lm_head.weight is table
    if hasattr(model, "generator_lm_head"):
        assert model.generator_lm_head.weight is table


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
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@cases
def test_resumed_run_equals_the_straight_one(tmp_path, objective, ledger):
    settings = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": None, "gradient_accumulation_steps": 2}
    straight = tiny.trainer(tmp_path, ledger, objective=objective, dropout=0.1, **settings)
    straight.train()
    resumed = tiny.trainer(tmp_path, ledger, objective=objective, dropout=0.1, **settings)
    torch.rand(3)  # a resumed process has used its generators otherwise
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    losses = {entry["step"]: entry["loss"] for entry in straight.state.log_history if "loss" in entry}
    again = {entry["step"]: entry["loss"] for entry in resumed.state.log_history if "loss" in entry}
    assert losses == again
    assert resumed.clock.flops == straight.clock.flops
    assert_tied(resumed.model)


# One member of a pair off, as its settings have it: then the run is that of the other alone, bit for bit.
OFF = {"layerdrop": {"p": 0.0}, "tnf": {**SETTINGS["tnf"], "weight": 0.0}}


@pytest.mark.parametrize("objective", ["mlm", "electra", "mcbert"])
@pytest.mark.parametrize(
    ("off", "on"),
    [(off, on) for off in OFF for on in SETTINGS if on != off and allowed({on: SETTINGS[on], off: OFF[off]})],
    ids=lambda name: name,
)
def test_a_pair_with_one_off_is_the_other_alone(tmp_path, objective, off, on):
    """With dropout, so that the last layer is computed everywhere, whoever reads it."""
    runs = []
    for ledger in ({on: SETTINGS[on]}, {on: SETTINGS[on], off: OFF[off]}):
        trainer = tiny.trainer(tmp_path, ledger, objective=objective, dropout=0.1)
        trainer.train()
        runs.append(trainer.model)
    alone, pair = (model.state_dict() for model in runs)
    for name, weight in alone.items():
        assert torch.equal(weight, pair[name]), name
    assert runs[0].config.layer_order == runs[1].config.layer_order


LOAD = """
import sys, torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer
for folder in sys.argv[1:]:
    probe = torch.load(folder + "/probe.pt")
    auto = AutoModelForPreTraining if probe["discriminates"] else AutoModelForMaskedLM
    for auto, place, name in ((auto, "", "logits"), (AutoModelForMaskedLM, "/generator", "generator")):
        model, report = auto.from_pretrained(folder + place, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        assert type(model).__module__.startswith("transformers."), type(model)
        assert torch.allclose(model(probe["ids"]).logits, probe[name], atol=1e-6)
        assert AutoTokenizer.from_pretrained(folder + place)("w1 w2").input_ids == [2, 6, 7, 3]
        encoder, report = AutoModel.from_pretrained(folder + place, output_loading_info=True)
        missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
        assert not missing and not report["mismatched_keys"], report
        if not place:
            assert torch.allclose(encoder(probe["ids"]).last_hidden_state, probe["hidden"], atol=1e-6)
assert not any(name.startswith("hf_effpt") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs, and one stopped in the middle, each with the outputs of its training model."""
    folders = []
    for objective, ledger in CASES:
        folder = tmp_path_factory.mktemp(objective)
        trainer = tiny.trainer(folder, ledger, objective=objective)
        if len(folders) % 2:
            trainer.add_callback(tiny.StopAfter(4))
        trainer.train()
        trainer.save_model()
        model = trainer.model.eval()
        ids = torch.randint(5, tiny.VOCAB, (3, tiny.LENGTH))
        with torch.no_grad():
            probe = {
                "ids": ids,
                "logits": model(ids).logits,
                "hidden": model.electra(ids).last_hidden_state,
                "generator": model.generator(ids).logits,
                "discriminates": objective in ("electra", "electra_15"),
            }
        torch.save(probe, folder / "probe.pt")
        folders.append((folder, model))
    return folders


def test_exports_load_in_a_clean_process(runs):
    folders = [str(folder) for folder, _ in runs]
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, cwd=folders[0])
    assert done.returncode == 0, done.stderr


def test_exports_share_no_storage_with_the_training_model(runs):
    model = runs[0][1]
    own = {p.data_ptr() for p in model.parameters()}
    for exported in (model.export(), model.export_generator()):
        assert not {p.data_ptr() for p in exported.parameters()} & own
    assert_tied(model)


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


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
@pytest.mark.parametrize("auxiliary", ["keep", "grow"])
def test_growth_keeps_what_is_shared_and_what_is_learned(tmp_path, objective, auxiliary):
    """On a toy, the loss is below its floor before and after each growth."""
    ledger = {"stacking": {"depth": 1, "at": [0.4, 0.7], "auxiliary": auxiliary}}
    trainer = tiny.trainer(
        tmp_path, ledger, objective=objective, budget="600steps", learning_rate=2e-3, logging_steps=20,
        per_device_train_batch_size=16,
    )  # fmt: skip
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
    name = trainer.model.main_loss_name
    history = [entry for entry in trainer.state.log_history if name in entry]
    for first, last in ((0.2, 0.4), (0.5, 0.7), (0.8, 1.0)):
        stage = [entry for entry in history if first < entry["clock"] <= last]
        gap = sum(entry["floor"] - entry[name] for entry in stage) / len(stage)
        assert gap > 0, (first, gap)
    exported = trainer.model.export_generator()
    assert exported.config.num_hidden_layers == 4
    assert "layer_order" not in exported.config.to_dict()


def test_generator_growing_along_is_refused_where_there_is_none():
    with pytest.raises(EffptError, match=r"`stacking.auxiliary` is `grow`, but the model has none"):
        tiny.model({"stacking": {"auxiliary": "grow"}})
    with pytest.raises(EffptError, match="has one of 2 layers; a generator that grows along must be as deep"):
        tiny.joint(methods={"stacking": {"auxiliary": "grow"}}, generator={"num_hidden_layers": 2})


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
