import logging

import pytest
from datasets.data_files import DataFilesDict, get_data_patterns

from hf_effpt.core.errors import EffptError
from hf_effpt.data import open_corpus
from hf_effpt.data.text_files import files_of_folder, files_of_pattern


@pytest.fixture
def folder(tmp_path):
    """Writes files whose text is their name, and returns the folder."""

    def write(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} ")
        return tmp_path

    return write


def names(folder, split="train"):
    return [str(path.relative_to(folder)) for path in files_of_folder(folder, split)[0]]


# Layouts, and the files of each split. `datasets.load_dataset` reads the first ones alike; in the others it finds no
# splits for want of small letters, or the same file in two.
LAYOUTS = [
    (
        ["train/a.txt", "train/b.txt", "validation/a.txt", "test/a.txt"],
        {"train": ["train/a.txt", "train/b.txt"], "validation": ["validation/a.txt"], "test": ["test/a.txt"]},
    ),
    (
        ["data/train/x/a.txt", "data/dev/a.txt"],
        {"train": ["data/train/x/a.txt"], "validation": ["data/dev/a.txt"]},
    ),
    (
        ["wiki-train/a.txt", "wiki_valid2/a.txt", "loose.txt"],
        {"train": ["wiki-train/a.txt"], "validation": ["wiki_valid2/a.txt"]},
    ),
    (
        ["train-00001.txt", "train-00000.txt", "wiki.dev.txt"],
        {"train": ["train-00000.txt", "train-00001.txt"], "validation": ["wiki.dev.txt"]},
    ),
    (["train.txt", "val.txt", "notes.txt"], {"train": ["train.txt"], "validation": ["val.txt"]}),
    (["training.txt", "retraining.txt", "my_eval.txt"], {"train": ["training.txt"], "test": ["my_eval.txt"]}),
    (["b.txt", "a/c.txt", "retraining.txt"], {"train": ["a/c.txt", "b.txt", "retraining.txt"]}),
    (["Train/a.txt", "Valid/a.txt"], {"train": ["Train/a.txt"], "validation": ["Valid/a.txt"]}),
    (["train/dev/a.txt", "validation/a.txt"], {"train": ["train/dev/a.txt"], "validation": ["validation/a.txt"]}),
]


@pytest.mark.parametrize(("layout", "splits"), LAYOUTS)
def test_splits_are_told_apart_by_folder_then_by_name(folder, layout, splits):
    root = folder(*layout)
    for split, expected in splits.items():
        assert names(root, split) == expected
    assert [text.strip() for text in open_corpus(str(root)).texts()] == splits["train"]


@pytest.mark.parametrize(("layout", "splits"), LAYOUTS[:-2])
def test_layouts_are_read_as_datasets_reads_them(folder, layout, splits):
    root = folder(*layout)
    found = DataFilesDict.from_patterns(get_data_patterns(str(root)), base_path=str(root))
    assert {str(split): sorted(files) for split, files in found.items()} == {
        split: [str(root / name) for name in expected] for split, expected in splits.items()
    }


def test_files_of_a_folder_without_splits_are_of_any_split(folder):
    assert names(folder("b.txt", "a/c.txt"), "validation") == ["a/c.txt", "b.txt"]


def test_a_split_that_is_not_there_is_named(folder):
    root = folder("train/a.txt", "dev/a.txt")
    with pytest.raises(EffptError, match=r"named after the splits \['train', 'validation'\], none of them 'test'"):
        files_of_folder(root, "test")


def test_what_is_not_read_is_listed_in_one_warning(folder, caplog):
    root = folder(
        "train.txt", "test.txt", "stray.txt", "paper.pdf", "b/scan.TIFF", "README.md",
        ".hidden.txt", "__pycache__/a.txt",
        *(f"image{number}.png" for number in range(7)),
    )  # fmt: skip
    (root / "linked").symlink_to(root / "b", target_is_directory=True)
    (root / "broken.txt").symlink_to(root / "nowhere.txt")
    (root / "train-again.txt").symlink_to(root / "train.txt")
    with caplog.at_level(logging.WARNING, logger="hf_effpt"):
        assert names(root) == ["train.txt"]
    (record,) = caplog.records
    message = record.getMessage()
    assert "9 not of a kind read" in message
    assert "(b/scan.TIFF, image0.png, image1.png, image2.png, image3.png, and 4 more)" in message
    assert "1 of no split, by folder or name (stray.txt)" in message
    assert "3 links to folders, to nothing or to files that are read already" in message
    assert "(broken.txt, linked, train-again.txt)" in message
    assert "README.md" not in message
    assert "hidden" not in message


def test_links_to_files_elsewhere_are_read_without_a_warning(folder, tmp_path_factory, caplog):
    root, elsewhere = folder("a.txt"), tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "b.txt").write_text("b")
    (root / "b.txt").symlink_to(elsewhere / "b.txt")
    with caplog.at_level(logging.WARNING, logger="hf_effpt"):
        assert names(root) == ["a.txt", "b.txt"]
    assert not caplog.records


def test_shards_of_the_hub_are_of_whatever_split_they_name(folder):
    root = folder(
        "data/train-00000-of-00002-ab12.jsonl", "data/train-00001-of-00002.jsonl", "data/welsh-00000-of-00001.jsonl",
        "data/validation-00000-of-00001.jsonl", "data/notes.txt", "train/a.txt",
    )  # fmt: skip
    assert names(root, "welsh") == ["data/welsh-00000-of-00001.jsonl"]
    assert names(root) == ["data/train-00000-of-00002-ab12.jsonl", "data/train-00001-of-00002.jsonl"]
    assert names(root, "dev") == ["data/validation-00000-of-00001.jsonl"]
    with pytest.raises(EffptError, match=r"splits \['train', 'validation', 'welsh'\], none of them 'breton'"):
        files_of_folder(root, "breton")


def test_a_pattern_reads_a_file_once_and_no_metadata(folder, caplog):
    root = folder("x/a.txt", "x/b.txt", "x/config.json", "x/README.md")
    (root / "w").symlink_to(root / "x", target_is_directory=True)
    (root / "x" / "c.txt").symlink_to(root / "x" / "a.txt")
    with caplog.at_level(logging.WARNING, logger="hf_effpt"):
        found = files_of_pattern(root / "*" / "*")
    assert [str(path.relative_to(root)) for path in found] == ["x/a.txt", "x/b.txt"]
    assert "metadata of a dataset or links" in caplog.text
    assert all(name in caplog.text for name in ("w/README.md", "w/a.txt", "w/config.json", "and 3 more"))
    assert files_of_pattern(root / "*" / "config.json")  # named
