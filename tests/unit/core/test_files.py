import os

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import STAGING, is_disk_full, replacing_folder_contents


def test_new_files_replace_their_namesakes_and_leave_the_rest(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "checkpoint-1").mkdir()
    with replacing_folder_contents(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("b")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "sub" / "b").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "checkpoint-1", "sub"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_everything_as_it_was(tmp_path, interruption):
    (tmp_path / "a").write_text("old")

    def write(folder):
        (folder / "a").write_text("half of the n")
        raise interruption

    with pytest.raises(interruption), replacing_folder_contents(tmp_path) as folder:
        write(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_failure_does_not_create_the_folder(tmp_path):
    with pytest.raises(RuntimeError), replacing_folder_contents(tmp_path / "out"):
        raise RuntimeError
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_is_not_published(tmp_path):
    (tmp_path / STAGING).mkdir()
    (tmp_path / STAGING / "half").write_text("hal")
    with replacing_folder_contents(tmp_path) as folder:
        (folder / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named_and_costs_nothing(tmp_path):
    (tmp_path / "a").write_text("old")

    def write(folder):
        (folder / "a").write_text("new")
        with open("/dev/full", "w") as full:
            full.write("more")

    with pytest.raises(EffptError, match=r"disk is full .*unchanged"), replacing_folder_contents(tmp_path) as folder:
        write(folder)
    assert (tmp_path / "a").read_text() == "old"


def test_a_full_disk_is_recognised_in_the_words_of_rust_libraries():
    assert is_disk_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(2, "No such file or directory"))


def test_a_file_cannot_be_the_output_folder(tmp_path):
    (tmp_path / "a").write_text("a")
    with pytest.raises(EffptError, match="is no folder"), replacing_folder_contents(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "a"
