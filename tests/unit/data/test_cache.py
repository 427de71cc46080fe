import errno
import os
import threading
from pathlib import Path

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.data import cache
from hf_effpt.data.cache import build_once, cache_folder, content_hash


def fill(target: Path) -> None:
    (target / "data").write_text("whole")


def test_folder_is_argument_then_variable_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_EFFPT_CACHE", str(tmp_path / "variable"))
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.delenv("HF_EFFPT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "hf_effpt"


def test_builds_once_when_many_ask(tmp_path):
    built = []
    start = threading.Barrier(4)

    def build(target: Path) -> None:
        built.append(target)
        fill(target)

    def ask() -> None:
        start.wait()
        build_once(tmp_path / "deep" / "key", build)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (tmp_path / "deep" / "key" / "data").read_text() == "whole"


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(target: Path) -> None:
        fill(target)
        raise EffptError("bad text")

    with pytest.raises(EffptError, match="bad text"):
        build_once(tmp_path / "key", build)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    killed = tmp_path / ".key-0123abcd"
    killed.mkdir()
    fill(killed)
    build_once(tmp_path / "key", fill)
    assert not killed.exists()


def test_full_disk_is_named(tmp_path):
    def build(target: Path) -> None:
        fill(target)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EffptError, match=r"disk is full.*cache_dir"):
        build_once(tmp_path / "key", build)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_unusable_cache_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EffptError, match=r"cannot be written to.*HF_EFFPT_CACHE"):
        build_once(tmp_path / "file" / "key", fill)


def test_content_hash_knows_contents_not_places(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    first = content_hash([write("a/one.txt", "x"), write("a/two.txt", "y")])
    assert content_hash([write("b/uno.txt", "x"), write("b/due.txt", "y")]) == first
    assert content_hash([write("c/one.txt", "x"), write("c/two.txt", "z")]) != first
    assert content_hash([write("d/one.jsonl", "x"), write("d/two.txt", "y")]) != first
    assert content_hash([tmp_path / "a/two.txt", tmp_path / "a/one.txt"]) != first


def test_content_hash_reads_a_settled_file_once(monkeypatch, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("before")
    os.utime(path, (1, 1))
    before = content_hash([path])

    def refuse(*arguments):
        raise AssertionError("the file was read again")

    with monkeypatch.context() as patch:
        patch.setattr(cache.hashlib, "file_digest", refuse)
        assert content_hash([path]) == before
    path.write_text("after!")
    assert content_hash([path]) != before
