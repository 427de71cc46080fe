import json
import sys
from pathlib import Path

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.data import labelled_docstrings, open_corpus, pydoc
from hf_effpt.data.docstrings import Prose, module_docstrings

ENGLISH = (
    "This is a plain English sentence of the kind that is found in the documentation of a package, and it is {} "
    "to be kept. It goes on for a while with words such as the and of, which is how English is told from a list."
)


def source(*texts: str, first: str = "") -> str:
    functions = "".join(f'def f{index}():\n    r"""{text}"""\n\n' for index, text in enumerate(texts))
    return f"{first}\n{functions}"


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """An empty site-packages, the only one there is."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (tmp_path / "stdlib").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(site)])
    monkeypatch.setattr(pydoc.sysconfig, "get_path", lambda name: str(tmp_path / "stdlib"))
    return site


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_documents_are_modules_and_nothing_is_imported(installed, tmp_path):
    trap = "raise SystemExit('imported')"
    write(installed / "pack" / "__init__.py", source(ENGLISH.format("good"), ENGLISH.format("fine"), first=trap))
    write(installed / "pack" / "sub" / "mod.py", source(ENGLISH.format("nice"), "too short"))
    write(installed / "alone.py", source(ENGLISH.format("well")))
    write(installed / "pack" / "tests" / "test_mod.py", source(ENGLISH.format("test")))
    write(installed / "pack-1.0.dist-info" / "data.py", source(ENGLISH.format("data")))
    write(tmp_path / "stdlib" / "base.py", source(ENGLISH.format("base")))
    corpus = open_corpus("builtin:pydoc")
    good, fine, nice, well, base = (ENGLISH.format(word) for word in ("good", "fine", "nice", "well", "base"))
    assert list(corpus.texts()) == [well, base, f"{good}\n\n{fine}", nice]
    assert corpus.name == "builtin:pydoc"
    assert corpus.num_bytes == sum(map(len, [good, fine, nice, well, base]))
    labelled = list(labelled_docstrings())
    assert labelled == [(well, "alone"), (base, "base"), (good, "pack"), (fine, "pack"), (nice, "pack")]


def test_files_that_do_not_parse_are_passed_over(installed):
    write(installed / "python2.py", source(ENGLISH.format("old"), first="print 'hello'"))
    write(installed / "nulls.py", source(ENGLISH.format("null"), first="\x00"))
    write(installed / "deep.py", source(ENGLISH.format("deep"), first="x = " + "(" * 500 + ")" * 500))
    write(installed / "escape.py", source(ENGLISH.format("warned"), first=r"pattern = '\d' is 'x'"))
    (installed / "latin.py").write_bytes(source(ENGLISH.format("caf\xe9")).encode("latin-1"))
    assert list(open_corpus("builtin:pydoc").texts()) == [ENGLISH.format("warned")]


def test_is_read_once_and_again_when_packages_change(installed, monkeypatch):
    write(installed / "one.py", source(ENGLISH.format("one")))
    first = open_corpus("builtin:pydoc")
    with monkeypatch.context() as patch:
        patch.setattr(pydoc, "_extract", lambda *_: pytest.fail("read again"))
        second = open_corpus("builtin:pydoc")
    assert second.fingerprint == first.fingerprint
    write(installed / "two.py", source(ENGLISH.format("two")))
    third = open_corpus("builtin:pydoc")
    assert third.fingerprint != first.fingerprint
    assert len(list(third.texts())) == 2


def test_no_documentation_at_all(installed):
    write(installed / "bare.py", "x = 1\n")
    with pytest.raises(EffptError, match="found no English docstring"):
        open_corpus("builtin:pydoc")


def test_docstrings_of_modules_classes_methods_and_functions(tmp_path):
    words = ["module", "class", "method", "async", "inner class"]
    module, klass, method, asynchronous, inner = (ENGLISH.format(word) for word in words)
    path = tmp_path / "m.py"
    path.write_text(
        f'"""{module}\n\n    Indented.\n    """\n'
        f'class A:\n    """{klass}"""\n    def m(self):\n        """{method}"""\n'
        f"        def local():\n            '''{ENGLISH}'''\n"
        f'    class B:\n        """{inner}"""\n'
        f'async def f():\n    """{asynchronous}"""\n'
    )
    assert module_docstrings(path) == [f"{module}\n\nIndented.", klass, method, inner, asynchronous]


def test_prose_is_kept_and_code_is_not():
    text = ENGLISH.format("good")
    example = ">>> this is an example in the documentation and it is not prose\nTrue"
    table = "x : {1, 2, 3}, (a|b) [0-9] ==> {y: 7}\n-----------------"
    assert Prose().clean(f"{text}\n\n{example}\n\n{table}\n\nThe end of it.") == f"{text}\n\nThe end of it."


@pytest.mark.parametrize(
    "text",
    [
        "An English sentence, but it is short.",
        "Diese Anleitung ist auf Deutsch geschrieben und soll nicht behalten werden, weil das Korpus englisch ist, "
        "sie ist lang genug, aber die Sprache stimmt nicht, und daher wird sie beim Lesen der Pakete weggelassen.",
        "Это описание написано по-русски. " * 10,
        "alpha beta gamma delta epsilon zeta eta theta iota kappa " * 5,
    ],
)
def test_other_text_is_dropped(text):
    assert Prose().clean(text) is None


def test_paragraphs_seen_before_are_dropped():
    prose = Prose()
    first, second = ENGLISH.format("first"), ENGLISH.format("second")
    assert prose.clean(first) == first
    again = first.replace(" ", "\n", 3).upper()
    assert prose.clean(f"{again}\n\n{second}") == second
    assert prose.clean(first) is None


def test_lone_surrogates_are_dropped():
    assert Prose().clean(ENGLISH.format("\ud800odd")) == ENGLISH.format("odd")


def test_a_damaged_table_of_an_older_version_is_extracted_anew(installed, tmp_path):
    write(installed / "pack.py", source(ENGLISH.format("good")))
    open_corpus("builtin:pydoc")
    (path,) = tmp_path.glob("cache/pydoc/*/docstrings.parquet")
    (path.parent / ".contents.json").write_text(json.dumps({path.name: path.stat().st_size}))
    path.write_bytes(bytes(path.stat().st_size))
    assert list(open_corpus("builtin:pydoc").texts()) == [ENGLISH.format("good")]
