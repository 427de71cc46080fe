import json

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_effpt.core.errors import EffptError
from hf_effpt.data import Corpus, corpus_of, open_corpus


@pytest.fixture
def folder(tmp_path):
    """A folder of every kind of file, and some that are none."""
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.txt").write_text("hidden")
    (root / "README.md").write_text("not text")
    (root / "b.txt").write_text("b one\n\nb still one")
    (root / "a.jsonl").write_text('{"text": "a one"}\n{"text": " "}\n{"text": "a two"}\n')
    pq.write_table(pa.table({"text": ["c one", None, "c two"]}), root / "sub" / "c.parquet")
    (root / "d.txt").write_text(" \n\n")
    return root


def test_folder_reads_all_kinds_in_order(folder):
    corpus = open_corpus(str(folder))
    assert list(corpus.texts()) == ["a one", "a two", "b one\n\nb still one", "c one", "c two"]
    assert list(corpus.texts()) == list(corpus.texts())
    assert corpus.name == str(folder)
    assert corpus.num_bytes > 0


def test_single_file_and_pattern(folder):
    assert list(open_corpus(str(folder / "b.txt")).texts()) == ["b one", "b still one"]
    assert list(open_corpus(str(folder / "a.jsonl")).texts()) == ["a one", "a two"]
    assert list(open_corpus(str(folder / "*.txt")).texts()) == ["b one\n\nb still one"]


def test_fingerprint_is_of_the_contents(folder, tmp_path):
    before = open_corpus(str(folder)).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_corpus(str(moved)).fingerprint == before
    assert open_corpus(str(moved / "b.txt")).fingerprint == open_corpus(str(moved / "b*.txt")).fingerprint
    lines = open_corpus(str(moved / "b.txt"), documents="lines")
    assert open_corpus(str(moved / "b.txt")).fingerprint != lines.fingerprint
    (moved / "b.txt").write_text("b one\n\nb still two")
    assert open_corpus(str(moved)).fingerprint != before
    (moved / "a.jsonl").write_text('{"text": "a", "other": "b"}')
    by_text, by_other = (open_corpus(str(moved / "a.jsonl"), text_column=column) for column in ("text", "other"))
    assert by_text.fingerprint != by_other.fingerprint


@pytest.mark.parametrize("name", ["./missing", "missing/", "missing/a/b", "a.txt", "dir/a.parquet", "~/no such/"])
def test_missing_path(name):
    with pytest.raises(EffptError, match=r"There is no file or folder .*looked for /.*builtin:pydoc"):
        open_corpus(name)


def test_pattern_without_match(tmp_path):
    with pytest.raises(EffptError, match="No file matches"):
        open_corpus(f"{tmp_path}/*.txt")


def test_folder_without_text_lists_what_it_holds(tmp_path):
    with pytest.raises(EffptError, match=r"holds nothing, needed is one of \.txt, \.jsonl, \.json, \.csv, \.parquet"):
        open_corpus(str(tmp_path))
    for name in ("a.pdf", "b.pdf", "c.txt.7z", "d.parquet.gz"):
        (tmp_path / name).write_text("x")
    with pytest.raises(EffptError, match=r"it holds 2 \.pdf, 1 \.7z, 1 \.gz, needed is one of"):
        open_corpus(str(tmp_path))
    with pytest.raises(EffptError, match=r"a\.pdf is a \.pdf; the text must be in \.txt, .* packed, as \.txt\.gz or"):
        open_corpus(str(tmp_path / "a.pdf"))


@pytest.mark.parametrize("text", ["", " \n\n\t\n"])
def test_empty_dataset(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(EffptError, match=r"is empty: it holds no document"):
        list(open_corpus(str(tmp_path / "a.txt")).texts())


def test_columns_are_checked_when_opened(folder):
    (folder / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(EffptError, match="no column 'text'; the columns are 'body'"):
        open_corpus(str(folder))
    with pytest.raises(EffptError, match="no column 'body'; the columns are 'text'"):
        open_corpus(str(folder), text_column="body")


def test_saved_datasets(tmp_path):
    data = Dataset.from_dict({"text": ["one", "", "two"], "id": [1, 2, 3]})
    data.save_to_disk(tmp_path / "flat")
    DatasetDict(train=data, validation=data.select([2])).save_to_disk(tmp_path / "split")
    flat = open_corpus(str(tmp_path / "flat"))
    assert list(flat.texts()) == list(flat.texts()) == ["one", "two"]
    assert flat.fingerprint == open_corpus(str(tmp_path / "flat")).fingerprint
    assert flat.fingerprint != open_corpus(str(tmp_path / "split"), split="validation").fingerprint
    assert list(open_corpus(str(tmp_path / "split"), split="validation").texts()) == ["two"]
    with pytest.raises(EffptError, match=r"has no split 'test', only \['train', 'validation'\]"):
        open_corpus(str(tmp_path / "split"), split="test")
    with pytest.raises(EffptError, match="no column 'body'; the columns are 'text', 'id'"):
        open_corpus(str(tmp_path / "flat"), text_column="body")
    with pytest.raises(EffptError, match="the column 'id' holds int64"):
        open_corpus(str(tmp_path / "flat"), text_column="id")
    (tmp_path / "flat" / "state.json").write_text(json.dumps({}))
    with pytest.raises(EffptError, match="cannot be loaded"):
        open_corpus(str(tmp_path / "flat"))


def test_hub_that_cannot_be_reached_names_local_ways(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EffptError, match=r"'nobody/nothing' is neither .* nor can it be had from the Hub.*\.jsonl"):
        open_corpus("nobody/nothing")
    with pytest.raises(EffptError, match="'nobody/train_split' is neither"):
        open_corpus("nobody/train_split")


def test_hub_dataset_with_configuration_and_split(monkeypatch):
    asked = []

    class Builder:
        hash = "abc"

    def load(name, configuration, split, streaming):
        asked.append((name, configuration, split))
        if split not in ("train", "validation"):
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train', 'validation'].")
        data = Dataset.from_dict({"text": ["hub one", None, "hub two"]})
        return data.to_iterable_dataset() if streaming else data

    monkeypatch.setattr("datasets.load_dataset_builder", lambda name, configuration: Builder)
    monkeypatch.setattr("datasets.load_dataset", load)
    for streaming in (False, True):
        corpus = open_corpus("org/name:config", split="validation", streaming=streaming)
        assert asked[-1] == ("org/name", "config", "validation")
        assert list(corpus.texts()) == list(corpus.texts()) == ["hub one", "hub two"]
        assert (
            corpus.fingerprint == open_corpus("org/name:config", split="validation", streaming=streaming).fingerprint
        )
        with pytest.raises(EffptError, match="no column 'body'; the columns are 'text'"):
            open_corpus("org/name:config", streaming=streaming, text_column="body")
    with pytest.raises(EffptError, match=r"has no split 'tset': Unknown split.*data\.split"):
        open_corpus("org/name", split="tset")


def test_hub_dataset_that_needs_a_configuration(monkeypatch):
    def refuse(name, configuration):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(
        EffptError, match=r"'org/my_split' needs a configuration, as in org/my_split:NAME.*\n.*'a', 'b'"
    ):
        open_corpus("org/my_split")


def test_streamed_dataset_that_does_not_know_its_columns(monkeypatch):
    rows = IterableDataset.from_generator(lambda: iter([{"text": "x", "other": 1}]))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_: type("Builder", (), {"hash": "abc"}))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    assert list(open_corpus("org/name", streaming=True).texts()) == ["x"]
    with pytest.raises(EffptError, match="the columns are 'text', 'other'"):
        open_corpus("org/name", streaming=True, text_column="body")


def test_unknown_builtin():
    with pytest.raises(EffptError, match="the only one built in is builtin:pydoc"):
        open_corpus("builtin:books")


def test_corpus_in_memory():
    corpus = corpus_of(["one", " ", "zwö"], name="mine")
    assert list(corpus.texts()) == ["one", "zwö"]
    assert corpus.num_bytes == 8
    assert corpus.fingerprint == corpus_of(["one", " ", "zwö"]).fingerprint
    assert corpus.fingerprint != corpus_of(["one ", "zwö"]).fingerprint


def test_what_is_no_text_is_named():
    with pytest.raises(EffptError, match=r"mine, document 2: this is a bytes, but documents must be strings"):
        corpus_of(["one", b"two"], name="mine")
    with pytest.raises(EffptError, match=r"mine, document 2: character 4 is half of a surrogate pair \(U\+D83D\)"):
        corpus_of(["one", "two \ud83d"], name="mine")
    read = Corpus("own", lambda: iter(["a", None, "\udc00"]), lambda: "f")
    with pytest.raises(EffptError, match=r"own, document 3: character 0 is half of a surrogate pair"):
        list(read.texts())


def test_a_saved_dataset_is_known_by_its_contents(tmp_path):
    for name, texts in (("one", ["a", "b"]), ("two", ["a", "b"]), ("three", ["a", "c"])):
        Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / name)
    first, second, third = (open_corpus(str(tmp_path / name)).fingerprint for name in ("one", "two", "three"))
    assert first == second != third
    (arrow,), (other,) = ((tmp_path / name).glob("*.arrow") for name in ("one", "three"))
    arrow.write_bytes(other.read_bytes())  # the state beside it still names the old contents
    assert open_corpus(str(tmp_path / "one")).fingerprint == third


def test_the_size_of_part_of_a_dataset_is_that_of_the_part():
    whole = Dataset.from_dict({"text": [f"{number:04} " + "é" * 120 for number in range(400)]})
    parts = [
        whole.shuffle(seed=3).select(range(8)),
        whole.filter(lambda one: one["text"].startswith("003")),
        whole.train_test_split(test_size=10, seed=1)["test"],
        whole.select(range(20, 32)),  # a slice, without a list of row numbers
    ]
    for part in [*parts, whole]:
        corpus = open_corpus(part)
        assert corpus.num_bytes == pytest.approx(sum(len(text.encode()) for text in corpus.texts()), rel=0.05)
    assert open_corpus(whole.select([])).num_bytes == 0


def test_a_damaged_saved_dataset_is_named(tmp_path):
    Dataset.from_dict({"text": ["sound words"] * 40}).save_to_disk(tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"sound", b"soun\xff", 1))
    with pytest.raises(EffptError, match=r"cannot be read after row 0 \(UnicodeDecodeError: .*save them again"):
        list(open_corpus(str(tmp_path)).texts())
    for state in ("[]", "{}", "null", "x"):
        (tmp_path / "state.json").write_text(state)
        with pytest.raises(EffptError, match=r"looks like a saved dataset, but cannot be loaded .*Save it again"):
            open_corpus(str(tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"text": 2}], "an IterableDataset, row 2: the column 'text' holds int"),
        ([{"text": "a"}, {"text": ["b"]}], "an IterableDataset, row 2: the column 'text' holds list"),
        ([{"text": "a"}, {"text": "b\udc00"}], "an IterableDataset, document 2: character 1 is half of a surrogate"),
        ([{"text": "a"}, {"body": "b"}], r"an IterableDataset cannot be read after row \d .*the same column"),
        ([{"text": b"a"}], "the column 'text' holds bytes"),
        ([1], "an IterableDataset cannot be read after row 0"),
    ],
    ids=str,
)
def test_rows_that_are_no_text_are_named(rows, message):
    with pytest.raises(EffptError, match=message):
        assert open_corpus(IterableDataset.from_generator(lambda: iter(rows))).fingerprint
    with pytest.raises(EffptError, match=message):
        list(open_corpus(IterableDataset.from_generator(lambda: iter(rows))).texts())


@pytest.mark.parametrize("text", ["some words " * 400, "a\0b"])
def test_text_in_the_place_of_a_source_is_named(text):
    for dataset in (text, [text, "more words"]):
        with pytest.raises(
            EffptError, match=r"cannot be a file or folder .* texts themselves are .* corpus_of"
        ) as error:
            open_corpus(dataset)
        assert len(str(error.value)) < 300
