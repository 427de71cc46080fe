import errno
import math
import os

import numpy as np
import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.core.files import (
    STAGING,
    create_once,
    finish_replacing,
    is_disk_full,
    read_json,
    replacing_folder_contents,
    write_atomically,
    write_json,
)
from tests.processes import run


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


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_between_two_files_is_made_good(tmp_path, monkeypatch, moved):
    for name in ("config.json", "model.safetensors", "run.json"):
        (tmp_path / name).write_text("old")
    real, done = os.replace, []

    def replace(source, target):
        if len(done) > moved:  # the first call declares the new files complete
            raise SystemExit("killed")
        done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)

    def save():
        with replacing_folder_contents(tmp_path) as folder:
            for name in ("config.json", "model.safetensors", "run.json"):
                (folder / name).write_text("new")

    with pytest.raises(SystemExit):
        save()
    monkeypatch.undo()
    assert not (tmp_path / "run.json").exists()  # no finished run is here
    finish_replacing(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("config.json", "model.safetensors", "run.json"), "new"
    )
    finish_replacing(tmp_path)  # there is nothing left to do


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


def raised(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def after(first, second, cause=None):
    """Raises `second` while `first` is handled."""
    try:
        raise first
    except Exception:
        raise second from cause


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_recognised_by_number_also_behind_other_errors(number):
    full, other = OSError(number, os.strerror(number)), OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    assert is_disk_full(full)
    assert is_disk_full(Exception(f"I/O error (os error {number})"))  # safetensors, tokenizers
    assert is_disk_full(raised(after, full, ValueError("while closing")))
    assert is_disk_full(raised(after, KeyError("x"), ValueError("saving failed"), full))
    assert not is_disk_full(other)
    assert not is_disk_full(raised(after, other, ValueError("(os error 2)")))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [1, 100_000])  # which is found when the archive is closed, or before
def test_a_full_disk_is_recognised_from_torch_which_loses_the_number(size, tmp_path):
    error = raised(torch.save, torch.zeros(size), "/dev/full")
    assert getattr(error, "errno", None) is None
    assert is_disk_full(error)
    for place in ("/nowhere/weights.pt", tmp_path):
        assert not is_disk_full(raised(torch.save, torch.zeros(1), place))


def test_a_full_disk_is_recognised_from_an_array_that_is_cut_short(tmp_path):
    code = """if True:
        import resource, sys
        import numpy as np
        from hf_effpt.core.files import is_disk_full
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            np.save(sys.argv[1], np.zeros(1000))
        except OSError as error:
            print(error.errno, is_disk_full(error))
    """
    assert run(code, str(tmp_path / "a.npy"), folder=tmp_path).said == "None True\n"


def test_a_file_is_replaced_by_text_or_by_what_a_function_writes(tmp_path):
    path = tmp_path / "a.npz"
    write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    write_atomically(path, lambda new: np.savez(new, a=np.arange(3)))  # adds a suffix where it misses its own
    assert np.load(path)["a"].tolist() == [0, 1, 2]
    assert [found.name for found in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("interruption", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path, interruption):
    path = tmp_path / "a"
    path.write_text("old")

    def write(new):
        new.write_text("half of the n")
        assert path.read_text() == "old"
        raise interruption

    with pytest.raises(type(interruption)):
        write_atomically(path, write)
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert [found.name for found in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def fill(folder):
    (folder / "a").write_text("mine")


@pytest.mark.parametrize("folder", [True, False])
def test_the_first_of_several_writers_wins(tmp_path, folder):
    path = tmp_path / "table"

    def write(made):
        if folder:
            fill(made)
        else:
            made.write_text("mine")
        assert not path.exists()
        create_once(path, lambda other: (other / "a" if folder else other).write_text("the other's"), folder)

    create_once(path, write, folder)
    assert (path / "a" if folder else path).read_text() == "the other's"
    assert [found.name for found in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_failing_writer_creates_nothing(tmp_path, folder):
    with pytest.raises(ZeroDivisionError):
        create_once(tmp_path / "table", lambda made: 1 // 0, folder)
    assert not list(tmp_path.iterdir())
    create_once(tmp_path / "table", fill if folder else lambda made: made.write_text("mine"), folder)
    assert (tmp_path / "table" / "a" if folder else tmp_path / "table").read_text() == "mine"


def test_a_file_cannot_be_the_output_folder(tmp_path):
    (tmp_path / "a").write_text("a")
    with pytest.raises(EffptError, match="is no folder"), replacing_folder_contents(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "a"


def test_json_is_strict_and_an_object(tmp_path):
    file = tmp_path / "run.json"
    write_json(file, {"loss": math.nan, "history": [{"loss": 1.5}, (-math.inf, 3)], "text": "NaN"})
    assert read_json(file) == {"loss": None, "history": [{"loss": 1.5}, [None, 3]], "text": "NaN"}
    assert "nan" not in file.read_text().replace('"NaN"', "").lower()
    for content in ("[1]", "", "{", "3", "\x00"):
        file.write_text(content)
        with pytest.raises(EffptError, match=r"run.json is damaged \(.*put back a copy"):
            read_json(file)
