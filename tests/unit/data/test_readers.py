import csv
import gzip
import json
import re
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.data import json_readers, open_corpus, table_readers, text_stream
from hf_effpt.data.document_cuts import CUTS, cut_documents
from hf_effpt.data.json_readers import read_json, read_jsonl
from hf_effpt.data.table_readers import parquet_text_bytes, read_csv, read_parquet
from hf_effpt.data.text_stream import strings_of


def read_txt(path, cut):
    return cut_documents(strings_of(path), cut)


@pytest.fixture
def file(tmp_path):
    """Writes bytes under a name and returns the path."""

    def write(name: str, data: bytes):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


PACKERS = {"": lambda data: data, ".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}


@pytest.mark.parametrize("packing", PACKERS)
def test_packed_files_are_read_as_unpacked_ones(file, packing):
    text, packed = "".join(f"line {number}\n" for number in range(300_000)), PACKERS[packing]
    assert "".join(strings_of(file(f"a.txt{packing}", packed(text.encode())))) == text
    contents = {
        "b.jsonl": '{"text": "one"}\n{"text": "two"}',
        "b.json": '[{"text": "one"}, {"text": "two"}]',
        "b.csv": "id,text\n1,one\n2,two",
        "b.TXT": "one\n\ntwo",
    }
    for name, content in contents.items():
        path = file(name + packing.upper(), packed(content.encode()))
        corpus = open_corpus(str(path))
        assert list(corpus.texts()) == ["one", "two"]
        assert corpus.num_bytes == (None if packing else len(content))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_damaged_packed_files_are_named(file, packing):
    packed = PACKERS[packing](str(list(range(10_000))).encode())
    damaged = [packed[: len(packed) // 2], b"no such packing"]
    if packing == ".gz":  # which holds a check sum
        damaged.append(packed[:50] + bytes(50) + packed[100:])
    for data in damaged:
        with pytest.raises(EffptError, match=rf"bad\.txt{packing} cannot be read \(.+\)\. It may be damaged"):
            list(strings_of(file(f"bad.txt{packing}", data)))


JSON = {
    "array": '[{"text": "one", "n": [1, {}]}, {"text": null},\n {"text": "a \\"b\\" [c], {d} \\ud800"}]\n',
    "lines": '{"text": "one", "n": 1}\n\n{"text": null}\n{"text": "a \\"b\\" [c], {d} \\ud800"}',
    "indented": json.dumps([{"text": "one"}, {"text": None}, {"text": 'a "b" [c], {d} \ud800'}], indent=2),
}


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json_is_an_array_or_objects_one_after_another(file, monkeypatch, text, chunk):
    monkeypatch.setattr("hf_effpt.data.json_readers.CHUNK_BYTES", chunk)
    monkeypatch.setattr("hf_effpt.data.text_stream.CHUNK_BYTES", chunk)
    assert list(read_json(file("a.json", text.encode()), "text")) == ["one", "", 'a "b" [c], {d} \ufffd']


def test_json_is_read_piece_by_piece(file, monkeypatch):
    monkeypatch.setattr("hf_effpt.data.json_readers.CHUNK_BYTES", 1000)
    monkeypatch.setattr("hf_effpt.data.text_stream.CHUNK_BYTES", 1000)
    texts, sizes, real = [f"text {number} " * (number % 50) for number in range(3000)], [], json_readers._longer

    def measured(*arguments):
        longer = real(*arguments)
        sizes.append(len(longer[0]))
        return longer

    monkeypatch.setattr(json_readers, "_longer", measured)
    path = file("a.json", json.dumps([{"text": text} for text in texts]).encode())
    assert list(read_json(path, "text")) == texts
    assert max(sizes) < 5000


@pytest.mark.parametrize("content", ["[]", " [ ] ", ""])
def test_json_without_records_is_empty(file, content):
    assert list(read_json(file("a.json", content.encode()), "text")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "b"}', r"a\.json, after record 2: not valid JSON \(the array is not closed"),
        ('[{"text": "a"}, ', r"after record 1: not valid JSON \(the array is not closed"),
        ('[{"text": "a"} {"text": "b"}]', r"after record 1: not valid JSON \('{' where it must go on or end"),
        ('[{"text": "a"}] 1', r"after record 1: not valid JSON \('1' where it must"),
        ('[{"text": "a"}, {"text": b}]', r"after record 1: not valid JSON \(Expecting value"),
        ('{"text": "a"}\n{"text": "b', r"after record 1: not valid JSON \(Unterminated string"),
        ('[{"text": "a"}, ["b"]]', r"record 2: this is a JSON list, but each record must be an object"),
        ('{"data": [{"text": "a"}]}', r"record 1: there is no column 'text'; the columns are 'data'"),
        ('[{"text": 5}]', r"record 1: the column 'text' holds int"),
        ('[{"text": "a"}, ' + "[" * 100_000, r"after record 1: not valid JSON \(maximum recursion depth"),
    ],
)
def test_bad_json_names_the_record(file, content, message):
    with pytest.raises(EffptError, match=message):
        list(read_json(file("a.json", content.encode()), "text"))


def test_csv_reads_the_column(file):
    long = "word, " * 50_000
    path = file(
        "a.csv", f'\ufeffid,text\r\n1,one\r\n2,"two ""quoted"",\r\nlines"\r\n\r\n3,\r\n4,"{long}"\r\n'.encode()
    )
    assert list(read_csv(path, "text")) == ["one", 'two "quoted",\nlines', "", long]
    assert list(read_csv(path, "id")) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("body,id\na,1", r"a\.csv: there is no column 'text'; the columns are 'body', 'id'"),
        ("text,text\na,b", r"a\.csv: there are several columns 'text'"),
        ("id,text\n1,a\n2,b, c", r"a\.csv, line 3: this row has 3 columns, but the first row names 2.*quotes"),
        ('id,text\n1,"a\n2,b', r"a\.csv, line 3: not valid CSV \(unexpected end of data"),
        ("", r"a\.csv: there is no column 'text'; the columns are none"),
    ],
)
def test_bad_csv_is_named(file, content, message):
    with pytest.raises(EffptError, match=message):
        list(read_csv(file("a.csv", content.encode()), "text"))


def test_txt_is_one_document_without_mark_and_carriage_returns(file):
    path = file("a.txt", b"\xef\xbb\xbffirst\r\n\r\nsecond \xc3\xa9")
    assert list(read_txt(path, "file")) == ["first\n\nsecond é"]


def test_paragraphs_are_separated_by_blank_lines(file):
    path = file("a.txt", b"\xef\xbb\xbf\n one\r\ntwo\r\n \t\n\n\nthree\n")
    assert list(read_txt(path, "blank_lines")) == [" one\ntwo", "three"]


@pytest.mark.parametrize("cut", CUTS)
def test_wrong_encoding_names_file_and_byte(file, cut):
    path = file("latin.txt", b"\xef\xbb\xbfgood line\ncaf\xe9 noir\n")
    with pytest.raises(EffptError, match=r"latin\.txt is not UTF-8 text: byte 0xe9 at offset 16.*iconv -f WINDOWS"):
        list(read_txt(path, cut))


def test_byte_order_mark_counts_in_offsets(file):
    with pytest.raises(EffptError, match="byte 0xe9 at offset 6"):
        list(read_txt(file("latin.txt", b"\xef\xbb\xbfcaf\xe9\n"), "lines"))


def test_utf_16_is_recognised(file):
    with pytest.raises(EffptError, match=r"byte 0xff at offset 0.*iconv -f UTF-16"):
        list(read_txt(file("wide.txt", "text".encode("utf-16")), "file"))


def test_jsonl_reads_the_column(file):
    path = file("a.jsonl", b'\xef\xbb\xbf{"body": "one", "n": 1}\n\n{"body": null}\n{"body": "tw\\u00f6 \\ud800"}')
    assert list(read_jsonl(path, "body")) == ["one", "", "twö \ufffd"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"a\.jsonl, line 2: not valid JSON"),
        (b'["text"]', r"a\.jsonl, line 2: this is a JSON list"),
        (b'{"body": "x", "id": 3}', r"line 2: there is no column 'text'; the columns are 'body', 'id'.*text_column"),
        (b'{"text": "x", "a": ' + b"[" * 100_000, r"line 2: not valid JSON \(maximum recursion depth"),
        (b'{"text": "x", "a": ' + b"1" * 5000 + b"}", r"line 2: not valid JSON \(Exceeds the limit \(4300 digits\)"),
        (b'{"text": 3}', r"line 2: the column 'text' holds int"),
        (b'{"text": "\xff"}', r"a\.jsonl is not UTF-8 text: byte 0xff at offset 27"),
    ],
)
def test_bad_json_line_is_named(file, line, message):
    path = file("a.jsonl", b'{"text": "good"}' + b"\n" + line + b"\n")
    with pytest.raises(EffptError, match=message):
        list(read_jsonl(path, "text"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_reads_the_column(tmp_path, kind):
    texts = ["one", None, "three"] * 1000
    table = pa.table({"nested": [{"a": 1, "b": 2}] * 3000, "text": pa.array(texts).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    assert list(read_parquet(tmp_path / "a.parquet", "text")) == [text or "" for text in texts]


def test_parquet_size_is_that_of_the_text(tmp_path):
    texts = [f"text number {index} " * 50 for index in range(500)]
    pq.write_table(pa.table({"id": range(500), "text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    size = sum(map(len, texts))
    assert size <= parquet_text_bytes(tmp_path / "a.parquet", "text") < 1.1 * size


def test_parquet_without_text_column_lists_the_columns(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(EffptError, match=r"no column 'text'; the columns are 'body', 'id'.*data\.text_column"):
        list(read_parquet(tmp_path / "a.parquet", "text"))
    with pytest.raises(EffptError, match="'id' holds int64"):
        list(read_parquet(tmp_path / "a.parquet", "id"))


def test_damaged_parquet_is_named(file, tmp_path):
    pq.write_table(pa.table({"text": ["x" * 1000]}), tmp_path / "whole.parquet")
    path = file("cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:200])
    with pytest.raises(EffptError, match=r"cut\.parquet cannot be read as Parquet"):
        list(read_parquet(path, "text"))
    with pytest.raises(EffptError, match=r"none\.parquet cannot be read as Parquet"):
        list(read_parquet(file("none.parquet", b""), "text"))


def test_parquet_that_is_no_text_names_the_row(tmp_path):
    texts = pa.array([b"good", b"caf\xe9"]).view(pa.binary())
    bad = pa.StringArray.from_buffers(2, *texts.buffers()[1:])
    pq.write_table(pa.table({"text": bad}), tmp_path / "bad.parquet")
    with pytest.raises(EffptError, match=r"bad\.parquet, row 2: not UTF-8 text: byte 0xe9 at offset 3"):
        list(read_parquet(tmp_path / "bad.parquet", "text"))


def test_damage_within_parquet_names_the_row(file, tmp_path):
    texts = [f"text {index} " * 50 for index in range(4000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "whole.parquet", row_group_size=1000, use_dictionary=False)
    data = bytearray((tmp_path / "whole.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path, read = file("bad.parquet", bytes(data)), []
    with pytest.raises(EffptError, match=r"bad\.parquet, after row [\d,]+, cannot be read as Parquet"):
        read.extend(read_parquet(path, "text"))


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(EffptError, match=r"twice\.parquet: there are several columns 'text'"):
        list(read_parquet(tmp_path / "twice.parquet", "text"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(EffptError, match=r"none\.txt cannot be read \(No such file"):
        list(read_txt(tmp_path / "none.txt", "file"))
    with pytest.raises(EffptError, match=r"cannot be read \(Is a directory"):
        list(read_jsonl(tmp_path, "text"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{{"text": "short"}}\n{{"text": "{}"}}\n'),
        ("a.json", '[{{"text": "short"}}, {{"text": "{}"}}]'),
        ("a.csv", 'text\nshort\n"{}"\n'),
    ],
)
def test_a_record_that_is_too_long_for_memory_is_named(tmp_path, monkeypatch, name, content):
    for module in (text_stream, json_readers, table_readers):
        monkeypatch.setattr(module, "RECORD_CHARACTERS", 2**18)
        monkeypatch.setattr(module, "CHUNK_BYTES", 2**12)
    before = csv.field_size_limit(2**17)
    try:
        path = tmp_path / name
        for characters, fits in ((2**18 - 100, True), (2**19 + 2**13, False)):
            path.write_text(content.format("a" * characters))
            texts = []
            with nullcontext() if fits else pytest.raises(EffptError) as error:
                texts += open_corpus(str(path)).texts()
            assert not fits or [*map(len, texts)] == [5, characters]
        assert re.search(rf"{name}, (line|record) \d: this record has more than 262,144 characters", str(error.value))
        assert "a .txt file" in str(error.value)
    finally:
        csv.field_size_limit(before)
