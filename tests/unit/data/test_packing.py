import json
import logging
import os
import pickle
import threading

import datasets
import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_effpt.core.errors import EffptError
from hf_effpt.data import Corpus, PackedRows, corpus_of, facts, long_documents, pack, token_file, train_tokenizer
from hf_effpt.data.corpus import open_corpus
from hf_effpt.data.encoding import TextEncoder
from hf_effpt.data.long_documents import in_parts
from hf_effpt.data.packing import pack_lengths


def reference_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("length", [8, 33, 128])
def test_rows_are_the_stream_of_documents(tokenizer, documents, length):
    packed = pack(corpus_of(documents), tokenizer, sequence_length=length, validation=None)
    assert list(packed) == ["train"]
    rows = np.array(packed["train"]["input_ids"])
    stream = [token for text in documents for token in [*reference_ids(tokenizer, text), tokenizer.sep_token_id]]
    inner = length - 2
    assert rows.shape == (len(stream) // inner, length)
    assert (rows[:, 0] == tokenizer.cls_token_id).all()
    assert (rows[:, -1] == tokenizer.sep_token_id).all()
    assert rows[:, 1:-1].reshape(-1).tolist() == stream[: len(rows) * inner]
    assert packed["train"].features["input_ids"] == datasets.List(datasets.Value("uint16"), length=length)


def test_isolated_rows_hold_every_document(byte_tokenizer, documents):
    train = pack(corpus_of(documents), byte_tokenizer, sequence_length=64, isolate_documents=True, validation=None)[
        "train"
    ]
    assert train.features["document_ids"].length == 64
    packed = PackedRows(train).rows(np.arange(len(train)))
    kept = [
        packed["input_ids"][row][packed["document_ids"][row] == number][1:-1].tolist()
        for row in range(len(train))
        for number in range(1, packed["document_ids"][row].max() + 1)
    ]
    wanted = []
    for text in documents:
        ids = reference_ids(byte_tokenizer, text)
        wanted += [ids[start : start + 62] for start in range(0, len(ids), 62)]
    assert sorted(kept) == sorted(wanted)


def test_special_tokens_in_the_text_are_text(tokenizer):
    text = "a [MASK] b [SEP] c [PAD] " * 20
    rows = np.array(pack(corpus_of([text]), tokenizer, sequence_length=16, validation=None)["train"]["input_ids"])
    assert not np.isin(rows[:, 1:-1], [tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id]).any()


def test_truncation_and_padding_of_the_tokenizer_are_ignored(tokenizer, documents):
    strict = pickle.loads(pickle.dumps(tokenizer))
    strict.backend_tokenizer.enable_truncation(4)
    strict.backend_tokenizer.enable_padding(length=512)
    expected, got = (pack(corpus_of(documents), one, validation=None)["train"] for one in (tokenizer, strict))
    assert got["input_ids"][:] == expected["input_ids"][:]


def test_held_out_documents_are_a_function_of_seed_and_number(tokenizer, documents):
    def parted(texts, **settings):
        packed = pack(corpus_of(texts), tokenizer, sequence_length=8, isolate_documents=True, **settings)
        assert facts(packed["train"])["documents"] + facts(packed["validation"])["documents"] == len(texts)
        rows = PackedRows(packed["validation"])
        return {tuple(row) for row in rows.rows(np.arange(len(rows)))["input_ids"].tolist()}

    assert parted(documents, validation=0.2, seed=1) == parted([*documents], validation=0.2, seed=1)
    assert parted(documents, validation=0.2, seed=2) != parted(documents, validation=0.2, seed=1)


def test_facts_tell_what_is_held_out(tokenizer, documents):
    packed = pack(corpus_of(documents), tokenizer, sequence_length=32, validation=0.1)
    told, aside = facts(packed["train"])["held_out"], facts(packed["validation"])
    tokens = [len(reference_ids(tokenizer, text)) for text in documents]
    assert (told["documents"], told["bytes"], told["of"]) == (aside["documents"], aside["bytes"], 60)
    assert told["share"] == told["tokens"] / sum(tokens)
    assert 0.08 < told["share"] < 0.11
    own = pack(corpus_of(documents[:50]), tokenizer, validation=corpus_of(documents[50:], name="own"))
    told = facts(own["train"])["held_out"]
    assert told["dataset"] == "own"
    assert told["documents"] == 10


def test_share_that_holds_out_no_row_is_raised_to_a_row(tokenizer, documents, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_effpt"):
        packed = pack(corpus_of(documents[:5]), tokenizer, sequence_length=32, validation=0.0001)
    assert 1 <= facts(packed["validation"])["documents"] <= 2
    assert len(packed["validation"]) >= 1
    assert len(packed["train"]) >= 1
    told = facts(packed["train"])["held_out"]
    said = f"validation=0.0001 was asked for, but {100 * told['share']:.3g} % of the text is held out"
    assert f"{said}: {told['documents']} of 5 documents, {told['tokens']:,} tokens" in caplog.text
    with pytest.raises(
        EffptError, match=r"too small to hold out validation=0.0001 .* of its 1 documents, none .* row"
    ):
        pack(corpus_of(documents[:1]), tokenizer, sequence_length=32, validation=0.0001)


def test_validation_of_its_own(tokenizer, documents, tmp_path):
    for split, texts in (("train", documents[:50]), ("validation", documents[50:])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    corpus = open_corpus(str(tmp_path), text_column="body")
    by_name = pack(corpus, tokenizer, sequence_length=16, validation=str(tmp_path))
    by_corpus = pack(corpus_of(documents[:50]), tokenizer, sequence_length=16, validation=corpus_of(documents[50:]))
    for split in ("train", "validation"):
        assert by_name[split]["input_ids"][:] == by_corpus[split]["input_ids"][:]
    assert facts(by_name["train"])["documents"] == 50
    assert facts(by_name["validation"])["documents"] == 10


def test_second_call_reads_nothing(tokenizer, documents, tmp_path):
    reads = []

    def read():
        reads.append(1)
        return iter(documents)

    def again(fingerprint="f", **settings):
        corpus = Corpus("counted", read, lambda: fingerprint)
        return pack(corpus, tokenizer, **{"cache_dir": tmp_path, "validation": 0.2, **settings})

    first = again()
    assert len(reads) == 1
    again(cache_dir=tmp_path / "raised", validation=0.001)  # which has to be raised, without reading again
    assert reads.pop()
    assert again()["train"]["input_ids"][:] == first["train"]["input_ids"][:]
    assert again()["train"]._fingerprint == first["train"]._fingerprint
    assert len(reads) == 1
    for number, change in enumerate(
        [{"fingerprint": "g"}, {"sequence_length": 64}, {"isolate_documents": True}, {"validation": 0.3}, {"seed": 1}]
    ):
        again(**change)
        assert len(reads) == number + 2
    again(validation=None, seed=3)
    again(validation=None, seed=4)
    assert len(reads) == 7


def test_cache_knows_the_tokenizer_by_its_content(tokenizer, documents, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    other = train_tokenizer(corpus_of(documents), vocab_size=256)
    prints = [facts(pack(corpus_of(documents), one)["train"])["fingerprint"] for one in (tokenizer, loaded, other)]
    assert prints[0] == prints[1] != prints[2]


def test_one_thread_gives_the_same_and_leaves_no_trace(tokenizer, documents, tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    one = pack(corpus_of(documents), tokenizer, num_proc=1, cache_dir=tmp_path / "one")
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    several = pack(corpus_of(documents), tokenizer, num_proc=2, cache_dir=tmp_path / "two")
    assert one["train"]["input_ids"][:] == several["train"]["input_ids"][:]


def test_threads_are_as_many_as_asked_for(tokenizer, documents, monkeypatch):
    """Each encodes alone: the library's own threads are as many as there are cores."""
    encoder, seen = TextEncoder(tokenizer, np.dtype(np.int64), num_proc=3), set()
    parts, real = list(in_parts(documents)), encoder.backend

    class Watched:
        def encode_batch_fast(self, texts, **settings):
            seen.add((threading.current_thread().name, os.environ["TOKENIZERS_PARALLELISM"]))
            return real.encode_batch_fast(texts, **settings)

    plain = encoder.encode_parts(parts)
    monkeypatch.setattr(encoder, "backend", Watched())
    assert [ids.tolist() for ids in encoder.encode_parts(parts)] == [ids.tolist() for ids in plain]
    assert 1 <= len(seen) <= 3
    assert {parallel for _, parallel in seen} == {"false"}
    assert threading.main_thread().name not in {name for name, _ in seen}
    assert encoder.encode_parts([]) == []


def test_batches_and_blocks_do_not_show(tokenizer, documents, tmp_path, monkeypatch):
    whole = pack(corpus_of(documents), tokenizer, cache_dir=tmp_path / "whole")
    monkeypatch.setattr(token_file, "BATCH_BYTES", 500)
    monkeypatch.setattr(token_file, "TABLE_ROWS", 7)
    monkeypatch.setattr(token_file, "RUN_TOKENS", 100)
    monkeypatch.setattr("hf_effpt.data.row_writer.BLOCK_BYTES", 1000)
    parts = pack(corpus_of(documents), tokenizer, cache_dir=tmp_path / "parts")
    for split in ("train", "validation"):
        assert parts[split]["input_ids"][:] == whole[split]["input_ids"][:]
        assert facts(parts[split]) == facts(whole[split])
    assert len(parts["train"].data.column("input_ids").chunks) > 1
    every = np.arange(len(whole["train"]))
    several, single = PackedRows(parts["train"]), PackedRows(whole["train"])
    assert (several.rows(every[::-1])["input_ids"] == single.rows(every[::-1])["input_ids"]).all()


def test_long_documents_are_cut_without_effect(tokenizer, documents, monkeypatch):
    spaced = corpus_of([*documents, "three   spaces   are   a   token " * 50])
    byte_tokenizer = train_tokenizer(spaced, vocab_size=512, kind="bpe")
    assert "ĠĠ" in byte_tokenizer.get_vocab()
    text = "  Two  spaces\n\nand lines\t" + "\n".join(documents[:20])
    text += documents[20].replace(" ", "   ") + documents[21]
    monkeypatch.setattr(long_documents, "PART_CHARACTERS", 40)
    assert len(list(in_parts([text]))) > 100
    for one in (tokenizer, byte_tokenizer):
        encoder = TextEncoder(one, np.dtype(np.int64))
        assert [ids.tolist() for ids in encoder.encode([text, "x"])] == [
            reference_ids(one, text),
            reference_ids(one, "x"),
        ]


def test_text_is_tokenised_in_small_batches_whatever_its_shape(tokenizer, monkeypatch):
    monkeypatch.setattr(long_documents, "PART_CHARACTERS", 100)
    monkeypatch.setattr(token_file, "BATCH_BYTES", 1000)
    monkeypatch.setattr(token_file, "BATCH_TEXTS", 50)
    batches, encode = [], TextEncoder.encode_parts

    def counted(encoder, parts, *arguments):
        batches.append((len(parts), sum(map(len, parts))))
        return encode(encoder, parts, *arguments)

    monkeypatch.setattr(TextEncoder, "encode_parts", counted)
    texts = [*["word"] * 500, "many words in a line " * 1000, *["unspaced" * 1000] * 2, *["word"] * 500]
    known = facts(pack(corpus_of(texts), tokenizer, validation=None)["train"])
    assert (known["documents"], known["bytes"]) == (1003, sum(map(len, texts)))
    assert sum(size for _, size in batches) == sum(map(len, texts))
    assert max(size for _, size in batches) < 1000 + 200
    assert max(count for count, _ in batches) <= 50


def test_space_at_a_cut_is_left_out_for_a_tokenizer_that_marks_beginnings(monkeypatch, tmp_path):
    monkeypatch.setattr(long_documents, "PART_CHARACTERS", 8)
    monkeypatch.setattr(token_file, "BATCH_TEXTS", 2)
    vocab = {token: index for index, token in enumerate(["?", "▁so", "▁be", "▁it", "▁"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    # As in Llama's tokenizer: every piece would begin with a space of its own.
    backend.normalizer = normalizers.Prepend("▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    one = PreTrainedTokenizerFast(tokenizer_object=backend)
    encoder = TextEncoder(one, np.dtype(np.int64))
    text = "so be it " * 10
    assert encoder.encode([text])[0].tolist() == reference_ids(one, text)
    text_file = token_file.TokenFile(tmp_path, encoder)
    text_file.fill(corpus_of([text, "so", text]))
    documents = [[], [], []]
    for run in text_file.runs():
        for number, ids in zip(run.numbers, np.split(run.tokens, np.cumsum(run.lengths)[:-1]), strict=True):
            documents[number] += ids.tolist()
    assert documents == [reference_ids(one, text), reference_ids(one, "so"), reference_ids(one, text)]


def test_facts(tokenizer, documents):
    texts = [*documents, "\x00\x01"]
    packed = pack(
        corpus_of(texts, name="mine"), tokenizer, sequence_length=32, isolate_documents=True, validation=None
    )
    known = facts(packed["train"])
    document_ids = np.array(packed["train"]["document_ids"])
    assert known == {
        "fingerprint": packed["train"]._fingerprint,
        "dataset": "mine",
        "documents": len(documents),
        "bytes": sum(len(text.encode()) for text in documents),
        "rows": len(packed["train"]),
        "tokens": np.count_nonzero(document_ids),
        "sequence_length": 32,
        "isolated": True,
        "fill": np.count_nonzero(document_ids) / document_ids.size,
    }
    assert known["fill"] > 0.9
    assert facts(packed["train"].shuffle(seed=0).select(range(2))) == known
    with pytest.raises(EffptError, match=r"not made by hf_effpt\.pack"):
        facts(Dataset.from_dict({"input_ids": [[1]]}))


def test_large_vocabulary_is_stored_wider(tokenizer, documents):
    large = pickle.loads(pickle.dumps(tokenizer))
    large.add_tokens([f"extra{index}x" for index in range(2**16)])
    train = pack(corpus_of([*documents, "extra65000x " * 100]), large, validation=None)["train"]
    assert train.features["input_ids"].feature.dtype == "int32"
    assert np.array(train["input_ids"]).max() == len(tokenizer) + 65000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 7}, "sequence_length=7 leaves no room"),
        ({"num_proc": 0}, "num_proc=0 must be at least 1"),
        ({"validation": 0.0}, "validation=0.0 must be a share between 0 and 1"),
        ({"validation": 1}, "validation=1 must be a share"),
        ({"validation": "./missing.txt"}, r"no file or folder './missing\.txt'"),
    ],
)
def test_impossible_settings(tokenizer, documents, settings, message):
    with pytest.raises(EffptError, match=message):
        pack(corpus_of(documents), tokenizer, **settings)


def test_corpus_without_a_row(tokenizer):
    with pytest.raises(EffptError, match=r"'few words' is too small: the 7 bytes .* one row of 128 tokens"):
        pack(corpus_of(["a b c d"], name="few words"), tokenizer, validation=None)
    with pytest.raises(EffptError, match="is empty"):
        pack(corpus_of([]), tokenizer)


def test_tokenizer_without_special_tokens(tokenizer, documents):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", cls_token="[CLS]")
    with pytest.raises(EffptError, match="has no sep_token, mask_token, which masked pre-training needs"):
        pack(corpus_of(documents), bare)


def test_bad_text_leaves_no_cache(tokenizer, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\n\n" * 100 + b"\xff")
    corpus = open_corpus(str(tmp_path / "bad.txt"), documents="blank_lines")
    with pytest.raises(EffptError, match="at offset 600"):
        pack(corpus, tokenizer, cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "packed").iterdir() if path.is_dir()]


def test_a_damaged_entry_of_the_cache_is_packed_anew(tokenizer, documents, tmp_path):
    def packed():
        return pack(corpus_of(documents), tokenizer, cache_dir=tmp_path)

    rows = packed()["train"]["input_ids"][:]
    (entry,) = [path for path in (tmp_path / "packed").iterdir() if path.is_dir()]
    arrow, told = entry / "train.arrow", entry / "train.json"
    sound, half = arrow.read_bytes(), arrow.stat().st_size // 2
    damages = (sound[:-300], sound[:100] + bytes(300) + sound[400:], sound[:half] + bytes(64) + sound[half + 64 :])
    for path, content in (*((arrow, damage) for damage in damages), (told, b"{}")):
        path.write_bytes(content)
        assert packed()["train"]["input_ids"][:] == rows
    fewer = told.read_text().replace('"rows": ', '"rows": 1')
    listed = json.loads((entry / ".contents.json").read_text())
    (entry / ".contents.json").write_text(json.dumps(listed | {"train.json": len(fewer)}))  # as older versions did
    told.write_text(fewer)
    assert packed()["train"]["input_ids"][:] == rows
    assert facts(packed()["train"])["rows"] == len(rows)


def test_text_that_changes_while_it_is_packed_leaves_no_cache(tokenizer, documents, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents))
    corpus = open_corpus(str(path))
    assert corpus.fingerprint
    path.write_text("\n\n".join(documents[1:]))
    with pytest.raises(EffptError, match=r"text\.txt was changed while it was read"):
        pack(corpus, tokenizer, cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "packed").iterdir() if path.is_dir()]
    path.unlink()
    with pytest.raises(EffptError, match=r"text\.txt cannot be read"):
        pack(corpus, tokenizer, cache_dir=tmp_path / "cache")


def test_several_lengths_hold_out_the_same_documents(byte_tokenizer, documents):
    corpus = corpus_of(documents)
    rows = pack_lengths(corpus, byte_tokenizer, [16, 64], validation=0.3)
    assert set(rows) == {"train", "validation", "train_64", "validation_64"}
    for length, suffix in ((16, ""), (64, "_64")):
        alone = pack(corpus, byte_tokenizer, sequence_length=length, validation=0.3)
        for split in ("train", "validation"):
            assert rows[f"{split}{suffix}"]["input_ids"] == alone[split]["input_ids"]
    assert facts(rows["train"])["held_out"] == facts(rows["train_64"])["held_out"]
    assert set(pack_lengths(corpus, byte_tokenizer, [16], validation=None)) == {"train"}


def test_a_length_of_which_too_little_is_held_out_is_refused(byte_tokenizer):
    corpus = corpus_of(["word " * 20] * 60)
    with pytest.raises(EffptError, match="makes no row of 512 tokens"):
        pack_lengths(corpus, byte_tokenizer, [16, 512], validation=0.02)
