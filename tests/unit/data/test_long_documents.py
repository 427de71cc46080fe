import pytest

from hf_effpt.data import Corpus, corpus_of, long_documents, open_corpus
from hf_effpt.data.long_documents import Part, beginnings, chosen_of, document_parts, in_parts, joined


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    """Cuts texts of 20 characters, between the 10th and the 20th."""
    monkeypatch.setattr(long_documents, "PART_CHARACTERS", 10)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("eleven and a half words are here", "eleven and"),  # before a space between words
        ("eleven,and\n a\nhalf\nwords\nare\nhere", "eleven,and"),  # before other white space
        ("一二三四五六七八九十一。二三四五六七八九十", "一二三四五六七八九十一。"),  # after punctuation
        ("x" * 25, "x" * 20),
        ("x" * 18 + "e\u0301\u0301" + "x" * 9, "x" * 18),  # but not before a mark
    ],
)
def test_documents_are_cut_at_the_best_gap(text, cut):
    parts = list(document_parts([text]))
    assert parts[0] == cut
    assert isinstance(parts[0], Part)
    assert not isinstance(parts[-1], Part)
    assert "".join(parts) == text


def test_cuts_do_not_depend_on_how_a_text_arrives():
    text = "It does not matter where a string ends, nor that " * 5
    whole = list(document_parts([text]))
    assert len(whole) > 10
    for size in (1, 7, 30, 100):
        assert list(document_parts(text[start : start + size] for start in range(0, len(text), size))) == whole


def test_parts_join_to_the_documents():
    texts = ["short", "a long one, long enough to be cut", "", "another one that is longer than that"]
    parts = list(in_parts(texts))
    assert len(parts) > len(texts)
    assert list(in_parts(parts)) == parts
    assert list(joined(parts)) == texts


def test_corpus_reads_blank_parts_as_its_whole_documents():
    texts = [" " * 100, "a", " " * 100 + "b", "c" + " " * 100, "\n"]
    corpus = corpus_of(texts)
    assert [text.strip() for text in corpus.texts()] == ["a", "b", "c"]
    assert sum(not isinstance(part, Part) for part in corpus.parts()) == 3
    assert list(Corpus("in parts", lambda: in_parts(texts), lambda: "f").texts()) == list(corpus.texts())


@pytest.mark.parametrize("chunk", [3, 1000])
def test_text_files_are_read_in_parts(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("hf_effpt.data.text_stream.CHUNK_BYTES", chunk)
    long = "Änderung um Änderung, Wort für Wort " * 8
    (tmp_path / "a.txt").write_bytes(f"{long}\r\nund\r\n \r\n\r\n{long}".encode())
    documents = [f"{long}\nund", long.strip()]
    corpus = open_corpus(str(tmp_path / "a.txt"))
    assert list(corpus.texts()) == documents
    assert max(map(len, corpus.parts())) < 20
    (tmp_path / "one").mkdir()
    (tmp_path / "a.txt").rename(tmp_path / "one" / "a.txt")
    corpus = open_corpus(str(tmp_path / "one"), documents="file")
    assert list(corpus.texts()) == [f"{long}\nund\n \n\n{long}"]
    assert list(corpus.in_parts().texts()) == [str(part) for part in corpus.parts()]
    assert corpus.in_parts().fingerprint == corpus.fingerprint


def test_chosen_documents_and_beginnings_of_a_pass():
    parts = [Part("ab"), Part("cd"), "e", "f", Part("gh"), "", "ijk"]
    assert [*chosen_of(parts, [True, False, False, True])] == ["ab", "cd", "e", "ijk"]
    assert [*chosen_of(parts, [False, True, True, False])] == ["f", "gh", ""]
    assert [*beginnings(parts, 3)] == ["abc", "f", "gh", "ijk"]
    assert [*beginnings(parts, 100)] == ["abcde", "f", "gh", "ijk"]
