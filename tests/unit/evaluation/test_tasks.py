import json
import os
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation.tasks import KNOWN, base_name, load_task

COLA = {"sentence": ["a b", "c d", "e f", "g h"], "label": [0, 1, 1, 0]}


def write(path: Path, columns: dict, features: Features | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(Dataset.from_dict(columns, features=features).data.table, path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(columns), *(separator.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")


def folder(path: Path, columns: dict, suffix: str = ".jsonl", validation: dict | None = None) -> Path:
    write(path / f"train{suffix}", columns)
    write(path / f"validation{suffix}", validation or columns)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("inside", ["tasks/cola", "cola"])
def test_a_known_task_in_every_kind_of_file(tmp_path, suffix, inside):
    folder(tmp_path / inside, COLA, suffix)
    task = load_task("cola", tmp_path)
    assert (task.name, task.text_columns, task.metrics) == ("cola", ("sentence",), ("mcc",))
    assert task.label_names == ("unacceptable", "acceptable")
    assert task.train["label"][:] == COLA["label"]
    assert task.train["sentence"][:] == COLA["sentence"]
    assert len(task.validation[""]) == 4
    assert task.notes == ()


def test_quotation_marks_in_a_tsv_swallow_nothing(tmp_path):
    folder(tmp_path / "cola", {"sentence": ['"a b', "c d", 'e "f', "g"], "label": [0, 1, 1, 0]}, ".tsv")
    assert load_task("cola", tmp_path).train["sentence"][:] == ['"a b', "c d", 'e "f', "g"]


@pytest.mark.parametrize("name", ["rte_subset", "rte_resplit"])
def test_data_that_are_not_the_published_ones_say_so(tmp_path, name):
    labels = ["not_entailment", "entailment"]
    folder(tmp_path / "tasks" / name, {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": labels})
    for asked in ("rte", name):
        task = load_task(asked, tmp_path)
        assert task.name == name
        assert task.train["label"][:] == [1, 0]  # the numbers of the Hub, not of the alphabet
        assert "compare with no published" in task.notes[0]


def test_mnli_has_two_validation_splits(tmp_path):
    rows = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [0, 1, 2]}
    for split in ("train", "validation_matched", "validation_mismatched"):
        write(tmp_path / "mnli" / f"{split}.csv", rows)
    assert list(load_task("mnli", tmp_path).validation) == ["", "_mm"]


def test_shards_are_put_together(tmp_path):
    for shard in range(2):
        write(tmp_path / "cola" / f"train-0000{shard}-of-00002.parquet", COLA)
    write(tmp_path / "cola" / "dev.parquet", COLA)
    assert len(load_task("cola", tmp_path).train) == 8


def test_stsb_is_a_regression_even_with_whole_numbers(tmp_path):
    folder(tmp_path / "stsb", {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 5]}, ".csv")
    task = load_task("stsb", tmp_path)
    assert task.label_names is None
    assert task.train.features["label"].dtype == "float32"


@pytest.mark.parametrize(
    ("columns", "texts", "names", "labels"),
    [
        ({"text": ["a", "b"], "label": ["no", "yes"]}, ("text",), ("no", "yes"), [0, 1]),
        ({"labels": [3, 7], "premise": ["a", "b"], "hypothesis": ["c", "d"], "id": ["x", "y"]},
         ("premise", "hypothesis"), ("3", "7"), [0, 1]),
        ({"title": ["a", "b"], "body": ["c", "d"], "more": ["e", "f"], "label": [1.0, 2.0]},
         ("title", "body"), None, [1.0, 2.0]),
        ({"text": ["a", "b"], "label": [True, False]}, ("text",), ("False", "True"), [1, 0]),
    ],
)  # fmt: skip
def test_columns_and_labels_of_a_task_of_ones_own(tmp_path, columns, texts, names, labels):
    task = load_task(str(folder(tmp_path / "mine", columns)))
    assert (task.name, task.text_columns, task.label_names) == ("mine", texts, names)
    assert task.train["label"][:] == labels
    assert task.metrics == (("pearson", "spearman") if names is None else ("accuracy",))
    assert any("text is read from" in note for note in task.notes)
    assert any("though whole ones" in note for note in task.notes) is (names is None)
    assert load_task("mine", tmp_path).name == "mine"  # found in a data folder too


def test_class_labels_keep_their_names_and_numbers(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ape"])})
    for split in ("train", "validation"):
        write(tmp_path / "mine" / f"{split}.parquet", {"text": ["a", "b"], "label": [1, 0]}, features)
    task = load_task(str(tmp_path / "mine"))
    assert task.label_names == ("zebra", "ape")
    assert task.train["label"][:] == [1, 0]


def test_one_file_is_split_the_same_way_each_time_and_it_is_said(tmp_path, caplog):
    write(tmp_path / "mine.jsonl", {"text": [f"t{i}" for i in range(40)], "label": [i % 2 for i in range(40)]})
    first, again = (load_task(str(tmp_path / "mine.jsonl")) for _ in range(2))
    assert (len(first.train), len(first.validation[""])) == (36, 4)
    assert first.validation[""]["text"][:] == again.validation[""]["text"][:]
    assert not set(first.train["text"]) & set(first.validation[""]["text"])
    assert "10% of the training examples are held out" in caplog.text


def test_each_class_has_its_share_of_what_is_held_out_and_a_single_example_is_learned(tmp_path):
    labels = ["common"] * 170 + ["rare"] * 30 + ["once"]
    write(tmp_path / "mine.jsonl", {"text": [f"t{i}" for i in range(201)], "label": labels})
    task = load_task(str(tmp_path / "mine.jsonl"))
    held = [task.label_names[number] for number in task.validation[""]["label"][:]]
    assert (held.count("common"), held.count("rare"), held.count("once")) == (17, 3, 0)
    write(tmp_path / "odd.jsonl", {"text": ["a", "b"], "label": ["x", "y"]})
    with pytest.raises(EffptError, match="no class of two examples"):
        load_task(str(tmp_path / "odd.jsonl"))
    write(tmp_path / "two.jsonl", {"text": ["a", "b"], "label": [0.5, 1.5]})
    assert len(load_task(str(tmp_path / "two.jsonl")).validation[""]) == 1


def test_a_file_of_ones_own_never_passes_as_a_known_task_and_a_folder_says_so(tmp_path):
    pairs = {"sentence1": ["a", "b", "c", "d"], "sentence2": ["e", "f", "g", "h"], "label": [0, 1, 0, 1]}
    for name in ("rte.jsonl", "rte_subset.jsonl"):
        write(tmp_path / name, pairs)
        task = load_task(str(tmp_path / name))
        assert task.name == name
        assert base_name(task.name) not in KNOWN
    for asked, data in ((str(folder(tmp_path / "own" / "rte", pairs)), None), ("own/rte", tmp_path)):
        task = load_task(asked, data)
        assert (task.name, task.label_names) == ("rte", KNOWN["rte"].label_names)
        assert "given by its path" in task.notes[0]
    folder(tmp_path / "other" / "rte", {"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(EffptError, match="needs sentence1 and sentence2"):
        load_task(str(tmp_path / "other" / "rte"))


BAD = {
    "hidden": ({"sentence": ["a", "b"], "label": [0, 1]}, {"sentence": ["a"], "label": [-1]}, "1 of 1 labels .* -1"),
    "no label": ({"sentence": ["a"], "gold": [1]}, None, "columns 'sentence', 'gold', .*`label`"),
    "no text": ({"phrase": ["a", "b"], "label": [0, 1]}, None, "string columns phrase, but needs sentence"),
    "unknown class": ({"sentence": ["a", "b"], "label": [0, 2]}, None, "train has the labels 2"),
    "one class": ({"sentence": ["a", "b"], "label": [1, 1]}, None, "every label in train is 1"),
    "unseen": (
        {"text": ["a", "b"], "label": ["x", "y"]}, {"text": ["a"], "label": ["z"]}, "validation has the labels z"
    ),
    "null": ({"sentence": ["a", None], "label": [0, 1]}, None, "row 1 of train has no 'sentence'"),
    "floats": ({"sentence": ["a", "b"], "label": [0.5, 1]}, None, "unacceptable, acceptable"),
    "unlike": ({"sentence": ["a", "b"], "label": [0, 1]}, {"sentence": ["a"], "label": ["0"]}, "different kinds"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_data_that_cannot_be_learned_from(tmp_path, case):
    train, validation, message = BAD[case]
    name = "mine" if case == "unseen" else "cola"
    folder(tmp_path / name, train, validation=validation)
    with pytest.raises(EffptError, match=message):
        load_task(name, tmp_path)


def test_class_never_seen_in_training_is_refused_though_it_has_a_name(tmp_path):
    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"]}
    folder(tmp_path / "mnli", {**rows, "label": [0, 1]}, validation={**rows, "label": [0, 2]})
    with pytest.raises(EffptError, match=r"labels 2, but train has only entailment, neutral\."):
        load_task("mnli", tmp_path)


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(EffptError, match="does not exist"):
        load_task("cola", tmp_path / "nowhere")
    with pytest.raises(EffptError, match=r"no task `cola`.*cola_subset"):
        load_task("cola", tmp_path)
    with pytest.raises(EffptError, match="did you mean `cola`"):
        load_task("colla", tmp_path)
    with pytest.raises(EffptError, match="or `hub` to download"):
        load_task("cola")
    write(tmp_path / "cola" / "validation.csv", COLA)
    with pytest.raises(EffptError, match=r"no training split: it holds validation\.csv"):
        load_task("cola", tmp_path)
    write(tmp_path / "cola" / "train.csv", COLA)
    write(tmp_path / "cola" / "train.jsonl", COLA)
    with pytest.raises(EffptError, match="keep one"):
        load_task("cola", tmp_path)
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train.csv").write_text("sentence1,sentence2,label\n")
    write(tmp_path / "rte" / "validation.csv", {"sentence1": ["a"], "sentence2": ["b"], "label": [0]})
    with pytest.raises(EffptError, match="split train has no examples"):
        load_task("rte", tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(EffptError, match="cannot be read as parquet"):
        load_task(str(tmp_path / "broken.parquet"))
    (tmp_path / "mine.docx").write_bytes(b"x")
    with pytest.raises(EffptError, match=r"mine\.docx is no"):
        load_task(str(tmp_path / "mine.docx"))


@pytest.mark.parametrize(
    ("name", "data", "asked"),
    [
        ("cola", "hub", ("nyu-mll/glue", "cola")),
        ("ag_news", "hub", ("fancyzhx/ag_news", None)),
        ("me/reviews:small", None, ("me/reviews", "small")),
    ],
)
def test_the_hub_is_asked_only_for_what_is_named(monkeypatch, caplog, name, data, asked):
    calls = []
    known = KNOWN.get(name)
    texts = {column: ["a", "b", "c", "d"] for column in (known.text_columns if known else ("text",))}

    def load_dataset(*given):
        calls.append(given)
        rows = Dataset.from_dict({**texts, "label": [0, 1, 0, 1]})
        return DatasetDict(train=rows, **({"test": rows} if name == "ag_news" else {"validation": rows}))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(name, data)
    assert calls == [asked]
    assert len(task.validation[""]) == 4
    assert f"Downloading the dataset {asked[0]}" in caplog.text
    with pytest.raises(EffptError):
        load_task("cola", "/nowhere/at/all")
    assert len(calls) == 1


def test_a_hub_that_fails_says_why(monkeypatch):
    def load_dataset(*given):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(EffptError, match=r"me/reviews is neither .* no route to host"):
        load_task("me/reviews")


def test_real_data():
    if not (data := os.environ.get("HF_EFFPT_DATA")):
        pytest.skip("HF_EFFPT_DATA names no folder with tasks")
    task = load_task("cola", data)
    assert (len(task.train), len(task.validation[""])) == (8551, 1043)
