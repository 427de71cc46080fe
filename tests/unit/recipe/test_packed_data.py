import pickle

import numpy as np
import pytest

pytest.importorskip("datatrove")

from hf_effpt.core.errors import EffptError
from hf_effpt.data import facts, open_rows, pack_shards
from hf_effpt.data.shards.opening import MANIFEST
from hf_effpt.evaluation.held_out_text import held_out_text
from hf_effpt.planning.text_of_pilot import text_of_pilot
from hf_effpt.preparation import prepare_data
from hf_effpt.pretraining import pretrain
from hf_effpt.recipe.recipe import Recipe
from hf_effpt.training.stream import BatchStream, KeyedRows

MODEL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two shards of rows of 16 tokens."""
    folder = tmp_path_factory.mktemp("packed")
    for number in range(2):
        text = "\n\n".join(f"document {number} {one} is about " + "words that recur " * 9 for one in range(40))
        (folder / f"{number}.txt").write_text(text)
    settings = {"documents": "blank_lines", "sequence_length": 16, "validation": 0.1, "vocab_size": 320}
    pack_shards(f"{folder}/*.txt", folder / "rows", tasks=2, workers=1, **settings)
    return folder / "rows"


def recipe(rows, tmp_path, **data):
    training = {"output_dir": str(tmp_path / "out"), "budget": "2steps", "per_device_train_batch_size": 4}
    own = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return {"model": MODEL, "data": {"dataset": str(rows), **data}, "training": {**training, **own}}


def test_a_run_takes_rows_tokenizer_and_settings_from_the_folder(rows, tmp_path):
    asked = Recipe.load(recipe(rows, tmp_path))
    assert (asked.data.sequence_length, asked.data.validation) == (16, "0.1")
    assert Recipe.load(asked.resolved()).resolved() == asked.resolved()
    pretrain(asked)
    _, tokenizer, packed = prepare_data(asked)
    text = held_out_text(tmp_path / "out", tokenizer, None, 16)
    assert facts(text.rows) == facts(packed["validation"]) == facts(open_rows(rows)["validation"])
    assert text_of_pilot(asked.resolved()["data"], tmp_path) == (asked.resolved()["data"], 1.0)


def test_processes_read_their_rows_of_all_shards(rows):
    train = open_rows(rows)["train"]
    whole = KeyedRows(train, keyed=True)
    sent = KeyedRows(pickle.loads(pickle.dumps(train)), keyed=True)  # as to a loader's worker
    shares = [next(iter(BatchStream(len(train), 8, 0, rank=rank, world=2))) for rank in range(2)]
    both = next(iter(BatchStream(len(train), 16, 0)))
    assert np.concatenate(shares).tolist() == both.tolist()
    found = whole.__getitems__(both)["input_ids"]
    assert found.tolist() == np.array(train["input_ids"])[both[:, 1]].tolist()
    assert sent.__getitems__(both)["input_ids"].tolist() == found.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sequence_length": 128}, r"`data.sequence_length` is 128, but the rows in .* were packed with 16"),
        ({"isolate_documents": True}, r"`data.isolate_documents` is True, but .* packed with False"),
        ({"validation": "0.2"}, r"`data.validation` is '0.2', but .* packed with '0.1'"),
        ({"tokenizer": "other"}, r"`data.tokenizer` is 'other', but .* packed with '.*/rows/tokenizer'"),
        ({"documents": "lines"}, r"`data.documents` is 'lines', but .* is packed already: leave it out"),
        ({"select": {"deduplicate": "exact"}}, r"`data.select` is .* is packed already"),
    ],
)
def test_settings_that_contradict_the_rows_are_refused(rows, tmp_path, data, message):
    with pytest.raises(EffptError, match=message):
        Recipe.load(recipe(rows, tmp_path, **data))


def test_a_built_in_recipe_gives_up_the_settings_of_a_tokenizer_that_it_trains(rows, tmp_path):
    flags = ["--data.dataset", str(rows), "--data.sequence_length", "16", "--training.output_dir", str(tmp_path)]
    assert Recipe.load("tiny", flags).data.tokenizer == str(rows / "tokenizer")
    with pytest.raises(EffptError, match=r"`data.sequence_length` is 128, but .* packed with 16"):
        Recipe.load("tiny", flags[:2])
    with pytest.raises(EffptError, match="vocab_size"):
        Recipe.load("tiny", [*flags, "--data.vocab_size", "640"])


def test_rows_that_are_not_finished_are_refused_when_the_recipe_is_read(rows, tmp_path):
    unfinished = tmp_path / "rows"
    unfinished.mkdir()
    (unfinished / "effpt_plan.json").write_bytes((rows / "effpt_plan.json").read_bytes())
    with pytest.raises(EffptError, match=rf"is not finished, since {MANIFEST} is missing; go on with: effpt pack"):
        Recipe.load(recipe(unfinished, tmp_path))
