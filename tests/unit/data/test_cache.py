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
        build_once(tmp_path / "deep" / "key", build, bool)

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
        build_once(tmp_path / "key", build, bool)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    killed = tmp_path / ".key-0123abcd"
    killed.mkdir()
    fill(killed)
    build_once(tmp_path / "key", fill, bool)
    assert not killed.exists()


def test_full_disk_is_named(tmp_path):
    def build(target: Path) -> None:
        fill(target)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EffptError, match=r"disk is full.*cache_dir"):
        build_once(tmp_path / "key", build, bool)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_unusable_cache_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / ("long" * 100), Path("/proc/none")):
        with pytest.raises(EffptError, match=r"The folder .* cannot be written to \(.+\).*HF_EFFPT_CACHE"):
            build_once(folder / "key", fill, bool)
    with pytest.raises(EffptError, match=r"cache folder '~no-such-user/x' cannot be found .*HF_EFFPT_CACHE"):
        cache_folder("~no-such-user/x")


def test_errors_of_the_text_are_not_blamed_on_the_cache_folder(tmp_path):
    def build(target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/text.txt")

    with pytest.raises(PermissionError, match="text"):
        build_once(tmp_path / "key", build, bool)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGES = {
    "emptied": empty,
    "cut short": lambda folder: os.truncate(folder / "data", 2),
    "file missing": lambda folder: (folder / "data").unlink(),
    "list of files damaged": lambda folder: (folder / cache.CONTENTS).write_text("{"),
    "of equal size": lambda folder: (folder / "data").write_text("wrong"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_built_anew(tmp_path, damage, caplog):
    def check(folder: Path) -> None:
        assert (folder / "data").read_text() == "whole"

    target = build_once(tmp_path / "key", fill, check)
    assert build_once(target, DAMAGES["emptied"], check) == target  # is not built
    assert (target / "data").read_text() == "whole"
    damage(target)
    build_once(target, fill, check)
    assert (target / "data").read_text() == "whole"
    assert "is damaged, or of an older version: it is built anew" in caplog.text


def test_equal_sized_damage_is_seen_once_and_a_whole_entry_is_read_once(tmp_path, monkeypatch, caplog):
    target, read = build_once(tmp_path / "key", fill, bool), []
    real = cache._digest
    monkeypatch.setattr(cache, "_digest", lambda path: (read.append(path.name), real(path))[1])
    build_once(target, DAMAGES["emptied"], bool)
    assert read == []  # as it was built
    os.utime(target / "data", (1, 1))
    for _ in range(2):
        build_once(target, DAMAGES["emptied"], bool)
    assert read == ["data"]  # copied, or touched
    (target / "data").write_text("wrong")
    assert "built anew" not in caplog.text
    build_once(target, fill, bool)
    assert (target / "data").read_text() == "whole"
    assert "built anew" in caplog.text
    for verified in ("[]", "{", '{"data": 1}'):
        (target / cache.VERIFIED).write_text(verified)
        build_once(target, DAMAGES["emptied"], bool)
    assert (target / "data").read_text() == "whole"


def test_an_entry_that_lists_sizes_only_is_read(tmp_path):
    """A folder as older versions listed it: what its files hold is for `check` to see."""
    target = build_once(tmp_path / "key", fill, bool)
    (target / cache.VERIFIED).unlink()
    (target / cache.CONTENTS).write_text('{"data": 5}')
    build_once(target, DAMAGES["emptied"], bool)
    (target / "data").write_text("12345")
    build_once(target, DAMAGES["emptied"], bool)
    assert (target / "data").read_text() == "12345"
    (target / "data").write_text("123456")
    build_once(target, fill, bool)
    assert (target / "data").read_text() == "whole"


def test_what_is_built_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    target = tmp_path / "key"
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, target.exists())))
    build_once(target, fill, bool)
    files = (target / "data", target / cache.CONTENTS, target)
    assert sorted(synced) == sorted((path.stat().st_ino, False) for path in files)


def test_a_file_in_the_place_of_an_entry_is_replaced(tmp_path):
    (tmp_path / "key").write_text("")
    build_once(tmp_path / "key", fill, bool)
    assert (tmp_path / "key" / "data").read_text() == "whole"


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
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    before = content_hash([path])

    def refuse(*arguments):
        raise AssertionError("the file was read again")

    with monkeypatch.context() as patch:
        patch.setattr(cache.hashlib, "file_digest", refuse)
        assert content_hash([path]) == before
    path.write_text("after!")
    os.utime(path, (1, 1))
    after = content_hash([path])
    assert after != before
    # Files of equal size and modification time: written in place, and moved there.
    path.write_text("again!")
    os.utime(path, (1, 1))
    again = content_hash([path])
    assert again not in (before, after)
    (tmp_path / "other").write_text("other!")
    os.utime(tmp_path / "other", (1, 1))
    (tmp_path / "other").replace(path)
    assert content_hash([path]) not in (before, after, again)


def test_a_damaged_memory_of_a_hash_is_not_believed(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    monkeypatch.setenv("HF_EFFPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("text")
    known = content_hash([path])
    (memo,) = (tmp_path / "cache" / "fingerprints").iterdir()
    for damaged in (b"", b"\xff", known[:-1].encode()):
        memo.write_bytes(damaged)
        assert content_hash([path]) == known
    assert memo.read_text() == known


def test_a_file_that_changes_or_goes_is_named(monkeypatch, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("text")
    real = cache.hashlib.file_digest

    def written_meanwhile(file, name):
        with path.open("a") as other:
            other.write("more")
        return real(file, name)

    monkeypatch.setattr(cache.hashlib, "file_digest", written_meanwhile)
    with pytest.raises(EffptError, match=r"text\.txt was changed while it was read"):
        content_hash([path])
    path.unlink()
    with pytest.raises(EffptError, match=r"text\.txt cannot be read \(No such file"):
        content_hash([path])
