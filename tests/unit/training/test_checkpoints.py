import errno
import json
import math
import os
import pickle
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, TrainerState

from hf_effpt.core.errors import EffptError
from hf_effpt.core.manifest import MANIFEST
from hf_effpt.data.corpus import corpus_of
from hf_effpt.data.packing import pack
from hf_effpt.hub.export import export
from hf_effpt.hub.folders import read_recipe
from hf_effpt.training.checkpoints import announcing, checkpoints_in, choose, fault, totals
from hf_effpt.training.stream import BatchStream
from hf_effpt.training.trainer import EffptTrainer
from tests import tiny
from tests.processes import Started

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


def run(folder, **changes):
    trainer = tiny.trainer(folder, **{**SAVING, **changes})
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its checkpoints in the folder `args.output_dir`."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text("training: {budget: 8steps}\n")
    return run(folder)


@pytest.fixture
def ran(finished, tmp_path):
    """A folder with a copy of the checkpoints of a finished run."""
    return shutil.copytree(finished.args.output_dir, tmp_path, dirs_exist_ok=True)


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "config.json", "scheduler.pt", "rng_state.pth"]
)
@pytest.mark.parametrize("harm", [truncate, lambda path: path.unlink()], ids=["cut short", "missing"])
@pytest.mark.usefixtures("ran")
def test_a_damaged_checkpoint_is_refused_and_the_last_whole_one_named(tmp_path, name, harm):
    harm(tmp_path / "checkpoint-8" / name)
    with pytest.raises(
        EffptError, match=rf"checkpoint-8 cannot be used: `{name}` .*resume from the last whole one: .*-6"
    ):
        tiny.trainer(tmp_path).train(resume_from_checkpoint=True)
    assert fault(tmp_path / "checkpoint-6") is None


@pytest.mark.usefixtures("ran")
def test_without_a_manifest_bytes_changed_inside_an_archive_are_found(tmp_path):
    for name in ("checkpoint-6", "checkpoint-8"):  # as older versions left them
        (tmp_path / name / MANIFEST).unlink()
        assert fault(tmp_path / name) is None
    archive = tmp_path / "checkpoint-8" / "optimizer.pt"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)[::-1].replace(b"\0", b"\7")
    archive.write_bytes(data)
    assert fault(tmp_path / "checkpoint-8") == "`optimizer.pt` is damaged or cut short"
    (tmp_path / "checkpoint-6" / "rng_state.pth").unlink()
    assert fault(tmp_path / "checkpoint-6") == "`rng_state.pth` is missing"


def flip(path):
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\n")


def empty(path):
    path.write_bytes(b"")


def as_list(path):
    """JSON of another shape."""
    path.write_text(json.dumps([json.loads(path.read_text())]))


def swap(path):
    """With the file of another checkpoint of the run, which is as whole."""
    other = path.parents[1] / "checkpoint-4" / path.name
    path.rename(path.with_suffix(".kept"))
    shutil.copyfile(other, path)


def with_nan(path):
    tensors = load_file(path)
    next(tensors[name] for name in sorted(tensors) if name.endswith("query.weight"))[0, 0] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})


def without_manifest(harm):
    def harm_and_remove(path):
        harm(path)
        (path.parent / MANIFEST).unlink()

    return harm_and_remove


@pytest.mark.parametrize(
    ("name", "harm", "says"),
    [
        *((name, flip, "bytes are not those") for name in
          ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json", "trainer_state.json",
           "training_args.bin", "tokenizer.json", "recipe.yaml")),
        *((name, lengthen, "bytes, and") for name in ("optimizer.pt", "trainer_state.json")),
        *((name, empty, "has 0 bytes") for name in ("recipe.yaml", "rng_state.pth")),
        *((name, swap, "bytes are not those") for name in ("optimizer.pt", "model.safetensors")),
        *((name, as_list, "is damaged") for name in ("config.json", "trainer_state.json")),
        *((name, without_manifest(as_list), "cannot be read") for name in ("config.json", "trainer_state.json")),
        ("rng_state.pth", os.unlink, "is missing"),
        ("tokenizer.json", os.unlink, "is missing"),
        ("model.safetensors", with_nan, "bytes are not those"),
        ("model.safetensors", without_manifest(with_nan), "not finite, in `bert.encoder.layer.0"),
        *((MANIFEST, harm, "cannot be read") for harm in
          (truncate, empty, as_list, lambda path: path.write_text('{"files": {}}'))),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ran")
def test_damage_is_found_and_the_last_whole_checkpoint_offered(tmp_path, name, harm, says):
    harm(tmp_path / "checkpoint-8" / name)
    harm(tmp_path / "checkpoint-6" / name)
    found = rf"checkpoint-8.*`{name}` .*{says}.*last whole"
    with pytest.raises(EffptError, match=rf"{found} one: (.*checkpoint-4) \(`--resume \1`\)"):
        choose(True, tmp_path)
    with pytest.raises(EffptError, match=rf"{found} checkpoint is .*: `effpt export .*checkpoint-4 --out DIR`"):
        export(tmp_path / "checkpoint-8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ran")
def test_a_recipe_of_a_run_that_is_emptied_is_offered_back(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for harm in (empty, lambda path: path.write_text("- a list\n"), lambda path: path.write_text("a: ["), os.unlink):
        harm(recipe)
        with pytest.raises(EffptError, match=r"holds no recipe; .* `cp .*checkpoint-8/recipe.yaml .*/recipe.yaml`"):
            read_recipe(recipe)
    flip(tmp_path / "checkpoint-8" / "recipe.yaml")
    with pytest.raises(EffptError, match=r"`cp .*checkpoint-6/recipe.yaml"):
        read_recipe(recipe)
    assert "recipe.yaml" in [path.name for path in export(tmp_path / "checkpoint-6", tmp_path / "out").iterdir()]
    for folder in checkpoints_in(tmp_path):  # as older versions left them
        (folder / "recipe.yaml").unlink()
        (folder / MANIFEST).unlink()
    with pytest.raises(EffptError, match=r"again, or export .*: `effpt export .*checkpoint-8 --out DIR`"):
        read_recipe(recipe)


@pytest.mark.usefixtures("ran")
def test_rotation_keeps_what_was_just_written_and_counts_whole_ones_only(tmp_path):
    truncate(tmp_path / "checkpoint-8" / "model.safetensors")
    resumed = tiny.trainer(tmp_path, **{**SAVING, "save_total_limit": 1})
    resumed.add_callback(tiny.StopAfter(7))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    whole = [folder.name for folder in checkpoints_in(tmp_path) if fault(folder) is None]
    assert whole == ["checkpoint-6"]


def test_resuming_with_other_rows_is_refused(tmp_path):
    def packed(text):
        return pack(corpus_of([text] * 40), tiny.tokenizer(), sequence_length=16, validation=None)["train"]

    def trainer(rows):
        given = {
            "model": tiny.model(),
            "args": tiny.arguments(tmp_path, **{**SAVING, "save_steps": 4}),
            "processing_class": tiny.tokenizer(),
        }
        made = EffptTrainer(**given, train_dataset=rows)
        made.cost.counter = tiny.RoughCounter()
        return made

    rows = packed("w1 w2 w3 w4 w5")
    trainer(rows).train()
    with pytest.raises(EffptError, match="The text or the tokenizer has changed since"):
        trainer(packed("w1 w2 w3 w4 w6")).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    trainer(rows).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_resuming_with_other_methods_is_refused(tmp_path):
    tiny.trainer(tmp_path, {"layerdrop": {"p": 0.2}}, budget="5steps", saved=[4]).train()
    for ledger, told in (({"layerdrop": {"p": 0.4}}, "'p': 0.4"), ({}, "no `layerdrop`")):
        with pytest.raises(EffptError, match=f"a run with `layerdrop: .*0.2.*{told}"):
            tiny.trainer(tmp_path, ledger, budget="5steps").train(
                resume_from_checkpoint=str(tmp_path / "checkpoint-4")
            )


def test_without_any_checkpoint_there_is_a_way_out(tmp_path):
    with pytest.raises(EffptError, match="start the run without `resume`"):
        tiny.trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(EffptError, match="it is not a folder"):
        tiny.trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


@pytest.mark.usefixtures("ran")
def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    config = tmp_path / "checkpoint-8" / "config.json"
    (config.parent / MANIFEST).unlink()
    right = json.loads(config.read_text())
    for wrong, told in (({"num_hidden_layers": 5}, "missing"), ({"intermediate_size": 72}, r"shape \['bert")):
        config.write_text(json.dumps(right | wrong))
        with pytest.raises(EffptError, match=rf"fit its configuration, `config.json`: .*{told}.*--resume .*-6`"):
            tiny.trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.usefixtures("ran")
def test_a_checkpoint_under_the_name_of_another_step_is_refused_where_it_is(tmp_path):
    (tmp_path / "checkpoint-8").rename(tmp_path / "checkpoint-9")
    with pytest.raises(EffptError, match=r"checkpoint-9 cannot be used: it is of step 8 .* one: .*checkpoint-6 "):
        tiny.trainer(tmp_path, budget="10steps").train(resume_from_checkpoint=True)
    named = (tmp_path / "checkpoint-9").rename(tmp_path / "best")
    assert choose(named, tmp_path) == named


@pytest.mark.usefixtures("ran")
def test_a_checkpoint_of_another_trainer_is_refused(tmp_path, finished):
    state = tmp_path / "checkpoint-8" / "trainer_state.json"
    (state.parent / MANIFEST).unlink()
    for content in ({}, [], {"ClockCallback": {"attributes": 3}}):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"stateful_callbacks": content}))
        with pytest.raises(EffptError, match="another Trainer has saved it; load its weights"):
            totals(state.parent, None, finished.args)


@pytest.mark.parametrize("failing", ["optimizer.pt", "model.safetensors", "trainer_state.json"])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path, finished, monkeypatch, failing):
    trainer = tiny.trainer(tmp_path, **SAVING)

    def full_at_step_6(write):
        def wrapped(*args, **kwargs):
            if trainer.state.global_step == 6:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*args, **kwargs)

        return wrapped

    owner, name = {
        "optimizer.pt": (trainer, "_save_optimizer_and_scheduler"),
        "model.safetensors": (trainer, "_save"),
        "trainer_state.json": (TrainerState, "save_to_json"),
    }[failing]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_at_step_6(getattr(owner, name)))
        with pytest.raises(EffptError, match=r"disk is full.*resume from .*checkpoint-4, which is whole"):
            trainer.train()
    assert [folder.name for folder in checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert all(fault(folder) is None for folder in checkpoints_in(tmp_path))
    assert not list(tmp_path.glob(".*"))
    resumed = tiny.trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in tiny.weights(finished.model).items():
        assert torch.equal(weight, dict(resumed.model.named_parameters())[name])


KILLED = """
import sys
from tests import tiny
from tests.processes import Started
trainer = tiny.trainer(sys.argv[1], save_strategy="steps", save_steps=2, dropout=0.1)
save = trainer._save_optimizer_and_scheduler
def die(folder):
    if trainer.state.global_step == 6:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    save(folder)
trainer._save_optimizer_and_scheduler = die
trainer.train()
"""


def test_a_kill_while_saving_leaves_the_previous_checkpoint_whole(tmp_path):
    process = Started(KILLED, str(tmp_path), folder=tmp_path, path=[os.getcwd()])
    assert process.wait() == -signal.SIGKILL
    assert [folder.name for folder in checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    resumed = tiny.trainer(tmp_path, **SAVING, dropout=0.1)
    resumed.train(resume_from_checkpoint=True)
    assert [folder.name for folder in checkpoints_in(tmp_path)][-1] == "checkpoint-8"
    assert not list(tmp_path.glob(".*"))
    straight = run(tmp_path / "straight", dropout=0.1)
    for name, weight in tiny.weights(straight.model).items():
        assert torch.equal(weight, dict(resumed.model.named_parameters())[name]), name


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, save_total_limit=2)
    assert [folder.name for folder in checkpoints_in(tmp_path)] == ["checkpoint-6", "checkpoint-8"]


@pytest.mark.usefixtures("ran")
def test_resuming_a_finished_run_does_nothing(tmp_path, finished):
    before = tiny.weights(finished.model)
    again = tiny.trainer(tmp_path, **SAVING)
    assert again.train(resume_from_checkpoint=True).global_step == 8
    for name, weight in tiny.weights(again.model).items():
        assert torch.equal(weight, before[name])


@pytest.mark.usefixtures("ran")
def test_a_longer_budget_goes_on(tmp_path):
    longer = tiny.trainer(tmp_path, budget="10steps")
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 10


@pytest.mark.usefixtures("ran")
def test_a_second_batch_size_goes_on_where_the_first_stopped(tmp_path):
    """The data stream is entered by row, so no row is seen twice in a pass."""
    other = tiny.trainer(tmp_path, **{**SAVING, "per_device_train_batch_size": 8, "budget": "9steps"})
    first = []
    collate = other.data_collator
    other.data_collator = lambda examples: (first.append(examples["example_id"]), collate(examples))[1]
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert first[0].tolist() == BatchStream(48, 8, seed=7).keys(np.arange(32, 40))[:, 1].tolist()


def test_checkpoints_hold_the_training_model_and_the_root_the_stock_one(tmp_path):
    trainer = run(tmp_path)
    trainer.save_model()
    assert json.loads((tmp_path / "checkpoint-8" / "config.json").read_text())["model_type"] == "effpt_bert"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["clock"]["steps"] == 8
    assert record["throughput"]["tokens_per_second"] > 0
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert json.loads((tmp_path / "elsewhere" / "config.json").read_text())["model_type"] == "bert"
    shutil.rmtree(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("own", "continued", "announced"),
    [(512, False, 16), (12, False, 16), (20, True, 20), (10**30, True, 32), (8, True, 16)],
)
def test_the_export_announces_what_the_model_was_trained_on(tmp_path, monkeypatch, own, continued, announced):
    trainer, tokenizer = tiny.trainer(tmp_path), pickle.loads(pickle.dumps(tiny.tokenizer()))
    trainer.processing_class, trainer.model.continued = tokenizer, continued
    monkeypatch.setattr(tokenizer, "model_max_length", own)
    trainer.save_model()
    assert tiny.LENGTH == 16
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == announced
    assert tokenizer.model_max_length == own
    with announcing(tokenizer, trainer.model, [{"input_ids": [1, 2]}]):  # of varying length
        assert tokenizer.model_max_length == own
    with announcing(object(), trainer.model, trainer.train_dataset):
        pass


LIMITED = """
import resource, signal, sys
from hf_effpt.core.errors import EffptError
from tests import tiny
from tests.processes import Started
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
trainer = tiny.trainer(sys.argv[1], save_strategy="steps", save_steps=4, budget="8steps")
class Limit(tiny.TrainerCallback):
    def on_save(self, *args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
trainer.add_callback(Limit())
try:
    trainer.train()
except Exception as error:
    print(type(error).__name__)
    sys.exit(7)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system cannot limit the size of files")
def test_a_write_that_really_fails_leaves_the_previous_checkpoint_whole(tmp_path):
    """The operating system refuses the second checkpoint's weights in the middle of the file."""
    process = Started(LIMITED, str(tmp_path), folder=tmp_path, path=[os.getcwd()])
    assert process.wait() == 7, process.said
    assert [folder.name for folder in checkpoints_in(tmp_path)] == ["checkpoint-4"]
    assert fault(tmp_path / "checkpoint-4") is None
