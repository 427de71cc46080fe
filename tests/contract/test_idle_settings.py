"""Settings that do nothing beside the others are refused, in all sections by one mechanism."""

import pytest
import yaml

from hf_effpt.core.errors import EffptError
from hf_effpt.core.registry import METHODS, build_methods, without_idle
from hf_effpt.core.settings import GIVEN, In, Like, When, check_effects, idle_settings
from hf_effpt.models import EffptBertConfig, EffptBertForMaskedLM, EffptElectraConfig
from hf_effpt.pretraining import claim
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.recipe.settings import DataSettings, ModelSettings
from tests import tiny

from .settings import name_of

# A method or section, the setting that does nothing, and the others.
IDLE = [
    ("compress", {"until": 0.9}, {}),
    *(("compress", {"importance": by}, {"depth": 2, "head_keep": 1.0}) for by in ("gates", "magnitude")),
    *(
        ("earlybert", {key: value}, {"ticket": ticket})
        for key, value in (("epsilon", 0.2), ("window", 3), ("every", 2), ("l1", 0.0), ("gate_learning_rate", 1))
        for ticket in ("magnitude", "michel", "out/ticket.json")
    ),
    *(
        ("earlybert", {key: value}, {"ticket": "out/ticket.json"})
        for key, value in (("head_keep", 0.5), ("ffn_keep", 0.5), ("weights", "keep"), ("after", 0.1))
    ),
    ("earlybert", {"max_search_steps": 9}, {"ticket": "out/ticket.json"}),
    *(("layerdrop", {key: value}, {"p": 0.0, "heads": 0.2}) for key, value in (("rate", "pld"), ("group", 2))),
    ("layerdrop", {"scaling": "training"}, {"p": 0.0, "heads": 0.2}),
    *(("layerskip", {key: 0.1}, {"routing": "topk"}) for key in ("alpha", "beta", "harden")),
    ("layerskip", {"alpha": 1.0}, {"beta": 0.1}),
    ("layerskip", {"target": 0.4}, {"alpha": 0.0}),
    *(
        ("lottery", {key: value}, {"learn": "supermask"})
        for key, value in (("sparsity", 0.5), ("rounds", 2), ("rewind_to", 1), ("criterion", "random"))
    ),
    *(
        ("lottery", {key: value}, {"ticket": "t.safetensors"})
        for key, value in (("rounds", 2), ("signs", "keep_sign"), ("learn", "supermask"), ("rescale", True))
    ),
    *(("lottery", {key: value}, {}) for key, value in (("rescale", True), ("score_learning_rate", 0.2))),
    *(
        ("selection", {key: value}, {"strategy": strategy})
        for strategy, key, value in (
            ("random", "holdout", "x"), ("random", "queue", 8), ("least_confidence", "table", "x"),
            ("selective_backprop", "max_age", 5), ("core_set", "dropout", 0.2), ("core_set", "members", 3),
            ("loss_rank", "explore", 0.2), ("infobatch", "outliers", 0.1), ("perceptron_ensemble", "queue", 8),
            ("perceptron_ensemble", "passes", 3), ("core_set", "num_score_positions", 2),
        )
    ),
    *(
        ("selection", {key: value}, {"strategy": strategy, "holdout": "x"})
        for strategy, key, value in (("token_selection", "table", "x"), ("rho", "num_score_positions", 2))
    ),
    ("selection", {"num_score_positions": 2}, {"strategy": "expected_gradient_length", "rule": "observed"}),
    ("stacking", {"joint_at": 0.5}, {}),
    ("tnf", {"scale": "match"}, {"weight": 0.0}),
    *(("model", {key: value}, {}) for key, value in (("loss_weight", 2.0), ("candidates", 5), ("faithful", True))),
    ("model", {"candidates_at": "masked"}, {"objective": "electra"}),
    ("model", {"generator_dropout": False}, {"objective": "electra"}),
    *(("data", {key: value}, {"dataset": "builtin:pydoc"}) for key, value in (("split", "x"), ("streaming", True))),
    ("data", {"text_column": "content"}, {"dataset": "builtin:pydoc"}),
    *(
        ("data", {key: value}, {"dataset": "a/", "tokenizer": "tok/"})
        for key, value in (
            ("vocab_size", 320), ("tokenizer_kind", "bpe"), ("lowercase", False), ("strip_accents", True)
        )
    ),
    ("training", {"multiply_warmup": True}, {"lr_scheduler_type": "constant"}),
    ("training", {"multiply_warmup": True}, {"warmup_steps": 0.0}),
    ("training", {"reference_times": "times.json"}, {"budget": "10min"}),
    ("training", {"num_train_epochs": 2.0}, {"budget": "8steps"}),
    *(("training", {key: "adafactor"}, {"bias_correction": False}) for key in ("optim", "optim_args")),
]  # fmt: skip
# Beside these methods alone.
LONELY = [{}, {"layerdrop": {"p": 0.1}}, {"layerskip": {}}]
SECTIONS = {"model": ModelSettings, "data": DataSettings, "training": lambda **given: tiny.arguments("out", **given)}
# Next to one that is refused, and with an effect; or switched off as a whole.
SOUND = [
    {"compress": {"depth": 2, "importance": "random"}},
    {"compress": {"depth": 2, "ffn_keep": 0.5, "importance": "gates"}},
    {"compress": {"importance": "magnitude"}},
    {"earlybert": {"ticket": "michel", "l1": 1e-4, "every": 10, "head_keep": 0.5, "weights": "keep"}},
    {"earlybert": {"ticket": "bad", "l1": 0.1}},
    {"layerdrop": {"p": 0.0, "rate": "pld", "group": 2, "after": 0.2}},
    {"layerdrop": {"rate": "pld"}},
    {"layerskip": {"harden": 0.4}},  # the loss with it is measured besides
    {"layerskip": {"routing": "topk", "harden": 0.5, "target": 0.4}},
    {"layerskip": {"target": 0.4, "beta": 0.1}},
    {"selection": {"strategy": "highest_loss", "scorer": "stale", "max_age": 5}},
    *({"tnf": {"at_growth": "reset"}, name: METHODS[name].example} for name in ("stacking", "compress", "earlybert")),
]


@pytest.mark.parametrize(
    ("name", "idle", "others"), IDLE, ids=lambda of: of if isinstance(of, str) else " ".join(map(str, of.values()))
)
def test_a_setting_that_does_nothing_is_refused_by_name(name, idle, others):
    ((key, value),) = idle.items()
    with pytest.raises(EffptError) as error:
        (SECTIONS.get(name) or METHODS[name])(**idle, **others)
    said = str(error.value)
    assert said.startswith(f"`{name}.{key}` is {value!r}, which has an effect only with `")
    assert said.endswith(f"; leave `{key}` out.")
    if name in METHODS:
        with pytest.raises(EffptError, match=f"`{name}.{key}`"):
            build_methods({name: {**idle, **others}}, tiny.config())


@pytest.mark.parametrize("ledger", SOUND, ids=name_of)
def test_a_setting_with_an_effect_is_taken(ledger):
    assert len(build_methods(ledger, tiny.config())) == len(ledger)


@pytest.mark.parametrize("others", LONELY, ids=name_of)
def test_a_setting_that_needs_another_method_is_refused_and_left_out_of_older_checkpoints(others, caplog):
    ledger = {"tnf": {"at_growth": "fast", "k": 3}, **others}
    with pytest.raises(EffptError) as error:
        build_methods(ledger, tiny.config())
    assert str(error.value) == (
        "`tnf.at_growth` is 'fast', which has an effect only with `stacking`, `compress`, `earlybert` or `lottery`; "
        "leave `at_growth` out."
    )
    with caplog.at_level("WARNING"):
        assert without_idle(ledger) == {**ledger, "tnf": {"k": 3}}
    assert "`tnf.at_growth`, 'fast', has done nothing" in caplog.text
    kept = {**ledger, "stacking": {"depth": 1, "at": [0.4]}}
    assert without_idle(kept) == kept


FULL, SLIDING = ["full_attention"] * 4, ["sliding_attention"] * 4


@pytest.mark.parametrize(
    ("idle", "types", "needed"),
    [
        ({"local_attention": 16}, FULL, "sliding_attention"),
        ({"rotary_base": 9e4}, SLIDING, "full_attention"),
        ({"local_attention": 16}, None, "sliding_attention"),  # of one layer, which is full
    ],
)
def test_a_setting_of_a_kind_of_attention_that_no_layer_has_is_refused(idle, types, needed):
    ((key, value),) = idle.items()
    shape = {"backbone": "modernbert", "size": "tiny", "num_hidden_layers": len(types or "x")}
    with pytest.raises(
        EffptError, match=rf"`model\.{key}` is {value!r}.*only with `{needed}` in one of the `layer_types`"
    ):
        ModelSettings(**shape, layer_types=types, **idle)
    mixed = {**shape, "num_hidden_layers": 4, "layer_types": [*FULL[:2], *SLIDING[:2]]}
    assert ModelSettings(**mixed, local_attention=16, rotary_base=9e4).local_attention == 16


@pytest.mark.parametrize("idle", [{"train_sampling_strategy": "group_by_length"}, {"dataloader_drop_last": True}])
def test_arguments_of_a_loader_that_the_stream_replaces_are_refused(tmp_path, idle):
    if (
        "train_sampling_strategy" in idle
        and "train_sampling_strategy" not in tiny.EffptTrainingArguments.__dataclass_fields__
    ):
        pytest.skip("needs newer transformers")
    with pytest.raises(EffptError, match=rf"`training\.{next(iter(idle))}` .*stream.*leave it out"):
        tiny.arguments(tmp_path, **idle)


def test_the_reason_names_what_is_needed_and_what_is_there():
    with pytest.raises(EffptError) as error:
        METHODS["layerskip"](harden=0.4, routing="topk")
    assert str(error.value) == (
        "`layerskip.harden` is 0.4, which has an effect only with `routing` `bernoulli`, and here `routing` is "
        "'topk'; leave `harden` out."
    )
    with pytest.raises(
        EffptError, match=r"`depth` left out or with `head_keep` in \(0, 1\) .*, `ffn_keep` is left out"
    ):
        METHODS["compress"](depth=2, importance="gates")


def test_values_that_give_an_effect():
    def met(needed, value):
        return not When(other=needed).unmet({"other": value})

    assert [met(In("(0, 1)"), value) for value in (0.5, 1.0, None, "x")] == [True, False, False, False]
    assert [met((None, "a"), value) for value in (None, "a", "b")] == [True, True, False]
    assert [met(Like("a.*", "like a"), value) for value in ("ab", "b", None, ["b"])] == [True, False, False, True]
    assert [met(GIVEN, value) for value in (None, "", 0)] == [False, True, True]
    assert (
        str(When(other=(None, In("[2, inf)"), "a"), flag=True))
        == "`other` left out, at least 2 or `a` and `flag` true"
    )


def test_every_condition_names_settings_that_there_are():
    for kind in (*METHODS.values(), ModelSettings, DataSettings, type(tiny.arguments("out"))):
        names = {field.name for field in kind.__dataclass_fields__.values()}
        every = {name: object() for name in names if name not in ("dataset", "output_dir")}
        for whens in idle_settings(kind, every).values():
            assert all(set(when.needed) <= names for when in whens)
    check_effects(METHODS["compress"](), "compress")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.model().export().save_pretrained(folder)
    return str(folder)


def sections_of(**data):
    return {
        "data": {"dataset": "a/", "sequence_length": 16, **data},
        "training": {"output_dir": "o", "budget": "8steps"},
    }


def test_what_a_checkpoint_brings_is_refused_across_sections(checkpoint):
    with pytest.raises(EffptError) as error:
        Recipe.load({**sections_of(lowercase=False), "model": {"from": checkpoint}})
    assert str(error.value) == (
        "`data.lowercase` is False, which has an effect only with `model.from` left out, and here `model.from` is "
        f"{checkpoint!r}; leave `lowercase` out."
    )


@pytest.mark.parametrize("flag", ["--data.tokenizer", "--model.from"])
def test_what_a_flag_makes_idle_is_left_out_and_what_it_sets_itself_is_refused(flag, checkpoint, caplog):
    sections = sections_of(vocab_size=320, strip_accents=True)
    loaded = Recipe.load(sections, [flag, checkpoint])
    assert (loaded.data.vocab_size, loaded.data.strip_accents) == (8192, None)
    assert "`data.vocab_size: 320`, which does nothing here and is left out" in caplog.text
    assert sections["data"]["vocab_size"] == 320
    with pytest.raises(EffptError, match=r"`data\.vocab_size` is 640"):
        Recipe.load(sections, [flag, checkpoint, "--data.vocab_size", "640"])
    with pytest.raises(EffptError, match=r"`data\.vocab_size` is 320"):  # no flag has made it so
        Recipe.load(sections_of(vocab_size=320, tokenizer="own/"), ["--data.whole_word", "true"])


# What older versions took.


def test_a_recipe_that_a_run_of_an_older_version_wrote_is_read(caplog, tmp_path):
    recipe = Recipe.load({"data": {"dataset": "a/", "tokenizer": "tok/"}, "training": {"output_dir": str(tmp_path)}})
    old = recipe.resolved()
    old["data"] |= {"vocab_size": 320, "lowercase": False}
    assert Recipe.load(old).resolved() == recipe.resolved()
    assert "`data.lowercase: False`, which does nothing here and is left out" in caplog.text
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    claim(tmp_path, Recipe.load(tmp_path / "recipe.yaml"), resume=True)
    claim(tmp_path, recipe, resume=True)


OLD = {"layerskip": {"routing": "topk", "harden": 0.4}, "own": {"x": 1}}


def test_a_checkpoint_with_a_setting_that_does_nothing_is_read(tmp_path, caplog):
    assert without_idle(OLD) == {"layerskip": {"routing": "topk"}, "own": {"x": 1}}
    tiny.model({"layerskip": {"routing": "topk"}}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"routing": "topk"', '"routing": "topk", "harden": 0.4'))
    with caplog.at_level("WARNING"):
        model = EffptBertForMaskedLM.from_pretrained(tmp_path)
    assert model.config.methods == {"layerskip": {"routing": "topk"}}
    assert "`layerskip.harden`, 0.4, has done nothing" in caplog.text
    config = EffptElectraConfig.from_dict({"methods": {"layerskip": OLD["layerskip"]}})
    assert config.methods == {"layerskip": {"routing": "topk"}}
    with pytest.raises(EffptError, match=r"`layerskip\.harden`"):  # said now
        EffptBertForMaskedLM(EffptBertConfig(**tiny.SHAPE, methods={"layerskip": OLD["layerskip"]}))


def test_a_run_with_a_setting_that_does_nothing_is_resumed_without_it(tmp_path):
    sections = {
        "model": {"num_hidden_layers": 4},
        "methods": {"layerskip": {"routing": "topk"}},
        "data": {"dataset": "builtin:pydoc"},
        "training": {"output_dir": str(tmp_path)},
    }
    recipe = Recipe.load(sections)
    old = recipe.resolved()
    old["methods"]["layerskip"]["harden"], old["data"]["split"] = 0.4, "x"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    claim(tmp_path, recipe, resume=True)
    old["methods"]["layerskip"]["target"] = 0.3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(EffptError, match=r"has `methods\.layerskip: .*'target': 0\.3"):
        claim(tmp_path, recipe, resume=True)
