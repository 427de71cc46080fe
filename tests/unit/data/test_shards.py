import json
import multiprocessing
import os
import shutil
import signal
import sys
import time

import datasets
import numpy as np
import pytest

pytest.importorskip("datatrove")

from datasets import Dataset
from datatrove.pipeline.base import PipelineStep

from hf_effpt.cli.main import main
from hf_effpt.core.errors import EffptError
from hf_effpt.data import PackedRows, facts, open_corpus, open_rows, pack, pack_shards
from hf_effpt.data.shards import executors, pieces, steps
from hf_effpt.data.shards import packing as shard_packing
from hf_effpt.data.shards.executors import Stage, options_of, run_stages
from hf_effpt.data.shards.opening import MANIFEST, is_rows
from hf_effpt.data.shards.pieces import pieces_of, tasks_of
from tests import local_hub as server

local_hub = server.local_hub
LENGTH = 32


@pytest.fixture(scope="module")
def corpus(documents, tmp_path_factory):
    """Four files of 15 documents, and the tokenizer's folder beside them."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        lines = [json.dumps({"text": text}) for text in documents[15 * number : 15 * number + 15]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def given(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(corpus, given, tmp_path_factory):
    """Finished rows of four tasks; tests that change them take a copy."""
    out = tmp_path_factory.mktemp("made") / "rows"
    pack_shards(str(corpus), out, tokenizer=given, sequence_length=LENGTH, validation=0.2, tasks=4, workers=1)
    return out


@pytest.fixture
def rows(made, tmp_path):
    return shutil.copytree(made, tmp_path / "rows")


def again(corpus, given, out, **changed):
    settings = {"tokenizer": given, "sequence_length": LENGTH, "validation": 0.2, "tasks": 4, "workers": 1}
    return pack_shards(str(corpus), out, **{**settings, **changed})


def ids(dataset):
    read = PackedRows(dataset)
    return {name: values.tolist() for name, values in read.rows(np.arange(len(read))).items()}


@pytest.mark.parametrize("isolated", [False, True])
def test_rows_of_one_task_are_those_of_a_run(corpus, given, tokenizer, tmp_path, isolated):
    settings = {"sequence_length": LENGTH, "isolate_documents": isolated, "validation": 0.2}
    wanted = pack(str(corpus), tokenizer, **settings)
    found = pack_shards(str(corpus), tmp_path / "rows", tokenizer=given, tasks=1, workers=1, **settings)
    assert list(found) == list(wanted)
    for split in wanted:
        assert ids(found[split]) == ids(wanted[split])
        told, known = facts(found[split]), facts(wanted[split])
        assert {key: told[key] for key in known if key != "fingerprint"} == {
            key: value for key, value in known.items() if key != "fingerprint"
        }


def pieces_in(dataset):
    """The pieces of isolated documents, sorted."""
    read = ids(dataset)
    found = []
    for tokens, documents in zip(read["input_ids"], read["document_ids"], strict=True):
        for number in range(1, max(documents) + 1):
            found.append([token for token, one in zip(tokens, documents, strict=True) if one == number])
    return sorted(found)


def test_several_tasks_have_the_documents_and_the_held_out_rows_of_one(corpus, given, tokenizer, tmp_path, made):
    settings = {"sequence_length": LENGTH, "isolate_documents": True, "validation": 0.2}
    wanted = pack(str(corpus), tokenizer, **settings)
    found = pack_shards(str(corpus), tmp_path / "rows", tokenizer=given, tasks=3, workers=1, **settings)
    assert pieces_in(found["train"]) == pieces_in(wanted["train"])
    assert ids(found["validation"]) == ids(wanted["validation"])
    # In rows that run on, each shard drops less than a row.
    streams, one = open_rows(made), pack(str(corpus), tokenizer, sequence_length=LENGTH, validation=0.2)
    assert ids(streams["validation"]) == ids(one["validation"])
    assert facts(streams["train"])["documents"] == facts(one["train"])["documents"]
    assert 0 <= len(one["train"]) - len(streams["train"]) <= 4
    assert len(streams["train"].data.column("input_ids").chunks) >= 4  # memory-mapped shards, not a copy


def test_only_what_is_missing_is_made_again(corpus, given, rows, monkeypatch):
    before, tokenised = ids(open_rows(rows)["train"]), []
    fill = steps.TokenFile.fill
    monkeypatch.setattr(steps.TokenFile, "fill", lambda *args, **how: (tokenised.append(1), fill(*args, **how)))
    again(corpus, given, rows)
    assert not tokenised
    shutil.rmtree(rows / "shards" / "00002")
    with pytest.raises(EffptError, match=r"shards/00002 is missing or damaged; make it again with: effpt pack .*"):
        open_rows(rows)
    assert ids(again(corpus, given, rows)["train"]) == before
    assert len(tokenised) == 1
    arrow = rows / "shards" / "00001" / "train.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-9] + b"\0damaged\0")
    with pytest.raises(EffptError, match="shards/00001 is missing or damaged"):
        open_rows(rows)
    assert ids(again(corpus, given, rows)["train"]) == before
    assert len(tokenised) == 2


@pytest.mark.parametrize("stage", ["WriteTokens", "HoldOut", "WriteRows", "Finish"])
def test_what_was_stopped_goes_on_and_loses_nothing(corpus, given, made, tmp_path, monkeypatch, stage):
    kind = getattr(steps, stage)
    run, calls = kind.run, []

    def stops(self, data=None, rank=0, world_size=1):
        calls.append(rank)
        if len(calls) == min(2, world_size):
            raise OSError("stopped")
        return run(self, data, rank, world_size)

    out = tmp_path / "rows"
    with monkeypatch.context() as patched:
        patched.setattr(kind, "run", stops)
        with pytest.raises(OSError, match="stopped"):
            again(corpus, given, out)
    assert is_rows(out)
    assert not (out / MANIFEST).exists()
    with pytest.raises(EffptError, match=r"is not finished.*; go on with: effpt pack .*--tasks 4"):
        open_rows(out)
    found = again(corpus, given, out)
    assert ids(found["train"]) == ids(open_rows(made)["train"])
    assert facts(found["train"])["fingerprint"] == facts(open_rows(made)["train"])["fingerprint"]


class Killed(PipelineStep):
    """Kills its process in the second task, once the first is done."""

    type, name = "TEST", "killed"

    def __init__(self, done):
        super().__init__()
        self.done = done

    def run(self, data=None, rank=0, world_size=1):
        while rank == 1:
            if self.done.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_killed_worker_is_an_error_and_what_is_done_is_kept(tmp_path, monkeypatch):
    # Processes that import nothing, since they are copies of this one.
    monkeypatch.setattr(executors, "get_context", lambda _: multiprocessing.get_context("fork"))
    done = tmp_path / "1_tokens" / "completions"
    stages = [Stage("1_tokens", [Killed(done / "00000")], 2), Stage("2_rows", [steps.HoldOut(tmp_path)], 1)]
    with pytest.raises(EffptError, match=r"A worker of the stage `1_tokens` was killed, perhaps for want of memory"):
        run_stages(stages, tmp_path, "local", {}, 2, "effpt pack")
    assert [path.name for path in done.iterdir()] == ["00000"]


def test_other_settings_other_text_and_other_folders_are_refused(corpus, given, rows, tmp_path, monkeypatch):
    with pytest.raises(EffptError, match=r"begun with other settings; go on with: effpt pack .* --sequence_length 32"):
        again(corpus, given, rows, sequence_length=64)
    texts = shutil.copytree(corpus, tmp_path / "texts")
    again(texts, given, tmp_path / "other")
    (texts / "0.jsonl").write_text('{"text": "new"}')
    with pytest.raises(EffptError, match=r"has changed since .* was begun"):
        again(texts, given, tmp_path / "other")
    with pytest.raises(EffptError, match=r"holds 0\.jsonl, .*; name a new folder"):
        again(corpus, given, texts)
    with shard_packing.WeakFileLock(rows / ".lock"), pytest.raises(EffptError, match="Another process is packing"):
        again(corpus, given, rows)
    content = json.loads((rows / MANIFEST).read_text())
    (rows / MANIFEST).write_text(json.dumps({**content, "format": 0}))
    with pytest.raises(EffptError, match=r"by another version of hf_effpt \(format 0.*effpt pack .* --out ANOTHER"):
        open_rows(rows)
    with pytest.raises(EffptError, match="is no folder of packed rows"):
        open_rows(texts)
    with pytest.raises(EffptError, match="has packed rows, made by `effpt pack`, and not text"):
        open_corpus(str(rows))
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(EffptError, match=r"not installed: pip install hf_effpt\[pack\]"):
        again(corpus, given, tmp_path / "new")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": [16, 32]}, r"sequence_length=\[16, 32\] must be one whole number"),
        ({"validation": "other/"}, "validation='other/' must be a share"),
        ({"validation": 1.5}, "validation=1.5 must be a share between 0 and 1"),
        ({"tasks": 0}, "tasks=0 must be at least 1"),
        ({"vocab_size": 512}, "vocab_size are of a tokenizer that is trained, but tokenizer="),
        ({"executor": "cloud"}, "choose one of local, slurm, ray"),
        ({"executor_options": ["a=1"]}, "are settings of a cluster"),
        ({"executor": "slurm", "workers": None}, "needs the settings time, partition"),
        ({"executor": "ray", "workers": None, "executor_options": ["cpus=2"]}, "no setting KEY=VALUE of ray"),
        ({"spilt": "train"}, "pack_shards takes no spilt"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(corpus, given, tmp_path, settings, message):
    with pytest.raises(EffptError, match=message):
        again(corpus, given, tmp_path / "rows", **settings)
    assert not (tmp_path / "rows").exists()


def test_a_cluster_gets_its_settings_and_stages_follow_one_another(tmp_path, monkeypatch):
    from datatrove.executor import slurm

    options = options_of("slurm", ["time=20:00:00", "partition=cpu", "mem_per_cpu_gb=4", "sbatch_args={account: me}"])
    assert options == {"time": "20:00:00", "partition": "cpu", "mem_per_cpu_gb": 4, "sbatch_args": {"account": "me"}}
    launched = []

    def launch(script, retriever, *words):
        launched.append((script, words))
        return len(launched)

    monkeypatch.setattr(slurm, "launch_slurm_job", launch)
    stages = [Stage(name, [steps.HoldOut(tmp_path)], tasks) for name, tasks in (("a", 3), ("b", 1))]
    assert run_stages(stages, tmp_path, "slurm", options, 1, "effpt pack") is False
    first, _, second, _ = launched  # after each, the job that adds up its statistics
    assert "--array=0-2" in first[0]
    assert "--time=20:00:00" in first[0]
    assert "--account=me" in second[0]
    assert "--dependency=afterok:1" in second[1]


def test_tasks_take_pieces_in_a_row(corpus, tmp_path):
    found = pieces_of(open_corpus(str(corpus)))
    assert [text for piece in found for text in piece.texts()] == list(open_corpus(str(corpus)).texts())
    assert tasks_of(found, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert tasks_of(found, 9) == tasks_of(found, 4)
    assert tasks_of(found, 2) == [(0, 2), (2, 4)]
    assert tasks_of(found, None) == [(0, 4)]
    both = open_corpus([str(corpus / "0.jsonl"), str(corpus / "1.jsonl")])
    assert len(pieces_of(both)) == 2
    weighted = open_corpus([{"path": str(corpus / f"{number}.jsonl"), "weight": 1} for number in range(2)])
    assert pieces_of(weighted) == [weighted]


def test_tasks_read_their_own_files_of_a_streamed_dataset(
    documents, given, tokenizer, tmp_path, monkeypatch, local_hub
):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", local_hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    lines = [json.dumps({"text": text}) + "\n" for text in documents]
    files = {f"train-{n:05d}-of-00003.jsonl": "".join(lines[20 * n : 20 * n + 20]).encode() for n in range(3)}
    repo = local_hub.repos["org/texts"] = server.Repo(private=False)
    repo.branches["main"] = server.Commit("text", files)
    repo.commits.append(repo.branches["main"])
    found = pieces_of(open_corpus("org/texts", streaming=True))
    assert [list(piece.texts()) for piece in found] == [documents[n : n + 20] for n in (0, 20, 40)]
    packed = again("org/texts", given, tmp_path / "rows", streaming=True, tasks=None)
    assert len(list((tmp_path / "rows" / "shards").glob("*.lock"))) == 3
    one = pack(str_corpus(documents, tmp_path), tokenizer, sequence_length=LENGTH, validation=0.2)
    assert ids(packed["validation"]) == ids(one["validation"])
    assert facts(packed["train"])["documents"] == facts(one["train"])["documents"]


def str_corpus(documents, folder):
    """A file of the documents."""
    path = folder / "all.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    return str(path)


def test_rows_of_a_dataset_are_cut_into_parts(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 20_000)
    Dataset.from_dict({"text": documents}).save_to_disk(tmp_path / "saved")
    saved = open_corpus(str(tmp_path / "saved"))
    assert len(parts := pieces_of(saved)) > 2
    assert [text for part in parts for text in part.texts()] == documents


def test_files_without_text_are_empty_shards_and_no_text_is_an_error(corpus, given, tmp_path):
    texts = shutil.copytree(corpus, tmp_path / "texts")
    (texts / "4.jsonl").write_text("")
    found = again(texts, given, tmp_path / "rows", tasks=5)
    assert len(found["train"]) > 0
    bare = tmp_path / "bare.txt"
    bare.write_text(" \n")
    with pytest.raises(EffptError, match="holds no document with text in it"):
        again(bare, given, tmp_path / "none")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(EffptError, match="text"):
        again(tmp_path / "a.jsonl", given, tmp_path / "column")


def test_the_command_goes_on_and_tells_what_is_there(corpus, rows, given, capsys):
    words = ["pack", str(corpus), "--out", str(rows), "--sequence_length", "32", "--validation", "0.2", "--tasks", "4"]
    assert main([*words, "--tokenizer", given]) == 0
    told = facts(open_rows(rows)["train"])
    assert f"{told['rows']:,} rows of 32 tokens in 4 shards" in capsys.readouterr().out
