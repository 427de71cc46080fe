"""Recipes: typed sections, flags that override, a round trip that keeps everything, and errors that name the key."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

import hf_effpt
from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper
from hf_effpt.core.registry import METHODS
from hf_effpt.recipe.recipe import Recipe, _default_arguments
from hf_effpt.recipe.settings import DataSettings, ModelSettings
from hf_effpt.training.arguments import EffptTrainingArguments

BUILT_IN = sorted((Path(hf_effpt.__file__).parent / "recipes").glob("*.yaml"))
TEXT = """
model:    {size: tiny, num_hidden_layers: 4, dropout: 1e-1}
methods:  {stacking: {depth: 1, at: [0.125, 3e-1]}, layerdrop: }
data:     {dataset: corpus/, validation: 0.05, lowercase: no, num_proc: null}
training: {output_dir: runs/a, budget: 90s, learning_rate: 5e-4, per_device_train_batch_size: 8}
"""


def recipe_file(folder, text=TEXT):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def sections(**changes):
    return {"data": {"dataset": "corpus/"}, "training": {"output_dir": "runs/a"}} | changes


def test_values_become_what_their_keys_need(tmp_path):
    recipe = Recipe.load(recipe_file(tmp_path))
    assert recipe.model == ModelSettings(size="tiny", num_hidden_layers=4, dropout=0.1)
    assert recipe.data == DataSettings(dataset="corpus/", validation="0.05", lowercase=False)
    assert recipe.data.held_out == 0.05
    assert recipe.methods == {"stacking": {"depth": 1, "at": [0.125, 0.3]}, "layerdrop": {"p": 0.2}}
    assert (recipe.training.learning_rate, recipe.training.budget) == (5e-4, "90s")
    assert recipe.training.per_device_train_batch_size == 8


def test_strings_in_a_mapping_are_typed_like_yaml_numbers():
    assert Recipe.load(sections(training={"learning_rate": "5e-4", "bf16": "false"})).training.learning_rate == 5e-4


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["--training.seed", "7", "--training.save_strategy", "no", "--methods.layerdrop.p", "0.4"],
        ["--training.report_to", "[tensorboard, trackio]", "--data.validation", "held_out/"],
        ["--training.lr_scheduler_type", "cosine_with_min_lr", "--training.lr_scheduler_kwargs", "{min_lr: 1e-5}"],
        ["--training.accelerator_config", "{non_blocking: true}", "--methods", "{}"],
    ],
)
def test_saved_recipe_loads_as_the_same(tmp_path, overrides):
    recipe = Recipe.load(recipe_file(tmp_path), overrides)
    recipe.save(tmp_path / "resolved.yaml")
    again = Recipe.load(tmp_path / "resolved.yaml")
    assert again == recipe
    assert again.resolved() == recipe.resolved() == Recipe.load(recipe.resolved()).resolved()


def test_resolved_recipe_is_plain_short_and_says_what_methods_do():
    resolved = Recipe.load(sections(methods={"layerdrop": {}}, training={"learning_rate": 2e-3})).resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert list(resolved) == ["model", "methods", "data", "training"]
    assert resolved["methods"]["layerdrop"]["p"] == 0.2
    assert resolved["training"]["learning_rate"] == 2e-3
    assert resolved["training"]["seed"] == 42
    assert "adam_beta1" not in resolved["training"]  # as the class has it


def test_the_card_says_what_of_text_and_checkpoint_is_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    flags = ["--card.license", "mit", "--card.language", "en", "de"]
    recipe = Recipe.load(sections(), flags)
    assert recipe.card_facts() == {"license": "mit", "language": ["en", "de"]} == recipe.resolved()["card"]
    assert Recipe.load(recipe.resolved()) == recipe
    texts = [{"path": "corpus"}, {"path": "org/text:de"}, {"path": "builtin:pydoc"}]
    recipe = Recipe.load(sections(data={"dataset": texts}))
    assert recipe.card_facts() == {"datasets": ["org/text"]}
    assert "card" not in recipe.resolved()
    recipe.model.from_ = "org/bert"
    recipe.card.datasets = ["org/other"]
    assert recipe.card_facts() == {"datasets": ["org/other"], "base_model": "org/bert"}
    with pytest.raises(EffptError, match=r"`card\.language` has 'German'"):
        Recipe.load(sections(), ["--card.language", "German"])


def test_script_and_file_make_the_same_recipe(tmp_path):
    recipe = Recipe(
        model=ModelSettings(size="tiny", num_hidden_layers=4, dropout=0.1),
        methods={"stacking": {"depth": 1, "at": [0.125, 0.3]}, "layerdrop": {}},
        data=DataSettings(dataset="corpus/", validation="0.05", lowercase=False),
        training=EffptTrainingArguments(
            output_dir="runs/a", budget="90s", learning_rate=5e-4, per_device_train_batch_size=8
        ),
    )
    assert Recipe.load(recipe_file(tmp_path)) == recipe


def test_access_token_is_not_written(tmp_path):
    recipe = Recipe.load(sections(training={"hub_token": "hf_secret"}))
    recipe.save(tmp_path / "resolved.yaml")
    assert recipe.training.hub_token == "hf_secret"
    assert "hf_secret" not in (tmp_path / "resolved.yaml").read_text()


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_built_in_recipe_loads_by_name_and_keeps_its_keys(path):
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    written["training"].pop("bf16", None)  # which a machine without a GPU refuses
    recipe = Recipe.load(path.stem, ["--training.bf16", "false"])
    assert recipe == Recipe.load(written)
    assert recipe.training.budget is not None


@dataclass
class Picky(Method):
    """A method with every kind of setting."""

    name: ClassVar[str] = "picky"
    summary: ClassVar[str] = "Takes every kind of setting."
    paper: ClassVar[Paper] = Paper(title="Picky", authors="Jane Doe", year=2001, bibtex="@misc{picky}")
    conflicts: ClassVar[frozenset[str]] = frozenset({"layerdrop"})

    count: int = 1
    flag: bool = True
    words: list[str] = field(default_factory=list)
    table: dict[str, float] | None = None


@pytest.fixture
def picky(monkeypatch):
    monkeypatch.setitem(METHODS, "picky", Picky)


@pytest.mark.usefixtures("picky")
def test_method_settings_are_typed_by_the_method_itself():
    given = {"count": "-3", "flag": "no", "words": ["--a", "b"], "table": {"x": 1e-3}}
    recipe = Recipe.load(sections(methods={"picky": given}))
    assert recipe.methods == {"picky": {"count": -3, "flag": False, "words": ["--a", "b"], "table": {"x": 1e-3}}}


@pytest.mark.usefixtures("picky")
def test_conflicting_methods_are_refused():
    with pytest.raises(EffptError, match="cannot run together"):
        Recipe.load(sections(methods={"picky": {}, "layerdrop": {}}))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "training",
            {"learning_rte": 1},
            "Section `training` has no key `learning_rte`: did you mean `learning_rate`",
        ),
        ("training", {"learning_rate": "fast"}, "`training.learning_rate` is 'fast'"),
        (
            "training",
            {"learning_rate": [1e-3, 2e-3]},
            r"`training.learning_rate` is \[0.001, 0.002\], but must be a single",
        ),
        ("training", {"seed": {"a": 1}}, "`training.seed` is {'a': 1}, but must be a value, not a mapping"),
        ("training", {"budget": "5 parsecs"}, "Cannot read the budget '5 parsecs'"),
        ("training", {"fsdp": "half"}, "`training.fsdp` is not supported"),
        ("training", [1], r"`training` is \[1\], but must be a mapping"),
        ("model", {"size": "tiiny"}, "`model.size` is 'tiiny'.*'tiny'"),
        ("model", {"num_hidden_layers": 0}, "`model.num_hidden_layers` is 0, but must be at least 1"),
        ("model", {"num_attention_heads": 3}, "`model.hidden_size` is 512, but must be a multiple of .*3"),
        ("model", {"dropout": 1.0}, "`model.dropout` is 1.0, but must be"),
        ("data", {"size": "tiny"}, "Section `data` has no key `size`"),
        ("data", {}, "Section `data` needs `dataset`.*--data.dataset"),
        ("data", {"dataset": "c", "vocab_size": 30522}, "`data.vocab_size` is 30522, .* such as 30528"),
        ("data", {"dataset": "c", "validation": 1.5}, "`data.validation` is 1.5"),
        (
            "data",
            {"dataset": "c", "sequence_length": 1024},
            "`data.sequence_length` is 1024, .* at most .*512",
        ),
        ("data", {"dataset": "c", "mlm_probability": 0}, "`data.mlm_probability` is 0.0"),
        ("methods", {"layrdrop": {}}, "There is no method `layrdrop`: did you mean `layerdrop`"),
        ("methods", {"stacking": {"dept": 3}}, "Section `methods.stacking` has no key `dept`: did you mean `depth`"),
        ("methods", {"layerdrop": {"p": "often"}}, "`methods.layerdrop.p` is 'often'"),
        ("methods", {"layerdrop": {"p": 2}}, "`layerdrop.p` must be in"),
        ("methods", {"stacking": {"depth": 4}}, "`stacking` cannot grow from 4 to 4 layers"),
        ("methods", ["layerdrop"], "`methods` is .* must be a mapping"),
        (1, {}, "A recipe has no section `1`"),
        ("trainig", {}, "A recipe has no section `trainig`: did you mean `training`"),
    ],
)
def test_error_names_section_and_key(section, values, message):
    with pytest.raises(EffptError, match=message):
        Recipe.load({**sections(), section: values})


@pytest.mark.parametrize("objective", ["electra", "mcbert"])
def test_a_smoothed_loss_beside_a_generator_is_refused_before_the_text_is_read(objective):
    sections = {"data": {"dataset": "no/such/folder"}, "training": {"label_smoothing_factor": 0.1}}
    with pytest.raises(EffptError, match=f"`training.label_smoothing_factor` changes .* objective `{objective}`"):
        Recipe.load({**sections, "model": {"objective": objective}})
    assert Recipe.load(sections).training.label_smoothing_factor == 0.1


def test_what_a_recipe_has_changed_is_found_without_a_second_look_for_processes(tmp_path, monkeypatch):
    """Arguments that find a device reset the state of Accelerate, in which a run's processes are."""
    recipe = Recipe.load(recipe_file(tmp_path))
    _default_arguments.cache_clear()
    monkeypatch.setitem(recipe.training.distributed_state._shared_state, "num_processes", 2)
    assert "budget" in recipe.resolved()["training"]
    assert recipe.training.world_size == 2
