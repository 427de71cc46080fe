import gzip
import random
import textwrap

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.data import file_readers, open_corpus
from hf_effpt.data.document_cuts import cut_documents, guessed_cut

DRAW = random.Random(0)
WORDS = ["".join(DRAW.choices("etaoinshrdlu", k=DRAW.randint(2, 9))) for _ in range(500)]


def words(number):
    return " ".join(DRAW.choices(WORDS, k=number))


def strings(text):
    return text.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("cut", "documents"),
    [
        ("blank_lines", ["a one\na two", "b one", "c"]),
        ("lines", ["a one", "a two", "b one", "c"]),
        ("file", ["\na one\na two\n \nb one\n\n\n\nc \n"]),
    ],
)
def test_documents_by_cut(cut, documents):
    text = "\na one\na two\n \nb one\n\n\n\nc \n"
    assert [one for one in cut_documents(strings(text), cut) if one.strip()] == documents
    # Lines may come in pieces, of which one may look blank.
    pieces = ["\n", "a", " ", "one", "\n", "a two\n", " ", "\n", "b one\n", "\n", "\n", "\n", "c", " ", "\n"]
    if cut != "blank_lines":
        assert [one for one in cut_documents(pieces, cut) if one.strip()] == documents


SENTENCES = [f"{words(DRAW.randint(3, 30))}." for _ in range(200)]
LIKELY = {
    "sentences": ("\n".join(SENTENCES), "lines"),
    "lines without full stops": ("\n".join(words(DRAW.randint(3, 30)) for _ in range(200)), "lines"),
    "lines about equally long": ("\n".join(words(12) for _ in range(200)), "lines"),
    "equally long sentences": ("\n".join(f"This is sentence {number}." for number in range(100, 200)), "lines"),
    "words": ("\n".join(WORDS), "lines"),
    "Chinese sentences": ("\n".join("\u4e00\u4e8c\u4e09" * DRAW.randint(3, 9) + "\u3002" for _ in range(50)), "lines"),
    "paragraphs": ("\n\n".join(SENTENCES), "blank_lines"),
    "sentences of documents": ("\n".join(SENTENCES[:9]) + "\n\n" + "\n".join(SENTENCES[9:]), "blank_lines"),
    "a wrapped text": (textwrap.fill(" ".join(SENTENCES), 72), "blank_lines"),
    "a narrow one": (textwrap.fill(" ".join(SENTENCES), 40), "blank_lines"),
    "sequences": ("\n".join("".join(DRAW.choices("ACGT", k=60)) for _ in range(50)), "blank_lines"),
    "one line": (words(1000), "blank_lines"),
    "three lines": ("one.\ntwo.\nthree.", "blank_lines"),
    "sentences with a stray blank line": ("\n".join(SENTENCES * 6).replace(".\n", ".\n\n", 1), "lines"),
    "wrapped chapters": ("\n\n".join(textwrap.fill(" ".join(SENTENCES * 3), 60) for _ in range(2)), "blank_lines"),
    "blank lines at the ends": ("\n" + "\n".join(SENTENCES) + "\n\n \n", "lines"),
}


@pytest.mark.parametrize(("text", "cut"), LIKELY.values(), ids=LIKELY)
def test_guesses(text, cut):
    assert guessed_cut(strings(text)) == cut


def test_a_file_is_guessed_and_several_small_ones_are_documents(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("\n".join(SENTENCES))
    for source in ("train.txt", "train*.txt", "."):
        found = open_corpus(str(tmp_path / source))
        assert (found.documents, found.guessed, len(list(found.texts()))) == ("lines", True, 200)
    (tmp_path / "train-2.txt").write_text("\n\n".join(SENTENCES))
    found = open_corpus(str(tmp_path))
    assert (found.documents, len(list(found.texts()))) == ("file", 2)
    monkeypatch.setattr(file_readers, "SMALL_BYTES", 1000)
    found = open_corpus(str(tmp_path))
    assert (found.documents, len(list(found.texts()))) == ("blank_lines", 201)
    found = open_corpus(str(tmp_path), documents="lines")
    assert (found.documents, found.guessed, len(list(found.texts()))) == ("lines", False, 400)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    assert open_corpus(str(tmp_path / "a.jsonl")).documents is None
    with pytest.raises(
        EffptError, match=r"documents='words' is no way to cut a file; choose one of blank_lines, lines"
    ):
        open_corpus(str(tmp_path), documents="words")


def test_packed_files_are_small_if_their_text_is(tmp_path):
    """A hundredth of it, packed: two shards are of sentences, and two pages of one document each."""
    shard, page = "\n".join(SENTENCES * 100), "\n".join(SENTENCES[:20])
    assert len(shard) > 1.5 * 2**20
    for name, text in (("shards", shard), ("pages", page)):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode(), 1))
    assert open_corpus(str(tmp_path / "shards")).documents == "lines"
    assert open_corpus(str(tmp_path / "pages")).documents == "file"
