"""What selection remembers: the losses that rows had, in the model, and those of a reference model, on disk."""

import json
import multiprocessing

import numpy as np
import pytest
import torch

from hf_effpt.core.errors import EffptError
from hf_effpt.methods.selection.memory import NAME, RENEWED, Memory
from hf_effpt.methods.selection.table import WAITING, IrreducibleLosses
from tests import tiny
from tests.picking import pool


def memory(rows=6, max_age=None, known=()):
    made = Memory(rows, max_age)
    for step, ids, losses in known:
        made.learn(pool(number=len(ids), ids=ids, step=step), torch.tensor(losses), 0)
    return made


def counted(kept, step, changed):
    """Which rows have a loss that still counts."""
    seen = kept.read(pool(number=len(kept.losses), step=step), changed)
    return (seen == kept.losses).tolist()


def test_a_row_has_the_loss_that_it_had_last():
    kept = memory(known=[(0, [1, 2], [5.0, 4.0]), (3, [2], [1.0])])
    assert kept.read(pool(ids=[2, 1], number=2, step=4), 0).tolist() == [1.0, 5.0]


def test_the_mean_of_all_losses_is_renewed_every_so_many_steps():
    kept = memory()
    assert kept.mean == torch.inf
    kept = memory(known=[(0, [1, 2], [5.0, 4.0]), (3, [2], [1.0])])
    assert kept.mean == 4.5
    kept.learn(pool(ids=[3], number=1, step=RENEWED), torch.tensor([6.0]), 0)
    assert kept.mean == 4.0
    kept.learn(pool(ids=[3], number=1, step=2 * RENEWED), torch.tensor([8.0]), RENEWED)
    assert kept.mean == 8.0  # the others are another architecture's


def test_at_first_and_after_a_change_the_mean_is_renewed_more_often():
    kept, means = memory(), []
    for step in range(10):
        kept.learn(pool(ids=[0], number=1, step=step), torch.tensor([float(step)]), 5 if step >= 5 else 0)
        means.append(kept.mean.item())
    assert means == [0, 1, 2, 2, 4, 5, 6, 7, 7, 9]


def test_a_row_that_a_step_has_twice_has_the_higher_loss():
    """At the end of one pass and the start of the next, under different masks."""
    kept = memory(known=[(0, [3, 1, 3], [2.0, 9.0, 4.0])])
    assert kept.losses.tolist() == [0.0, 9.0, 0.0, 4.0, 0.0, 0.0]
    kept.learn(pool(ids=[3, 3], number=2, step=1), torch.tensor([1.0, 0.5]), 0)
    assert kept.losses[3] == 1.0


def test_a_row_without_a_loss_is_above_all_others_by_lot():
    kept = memory(known=[(0, [1, 2], [5.0, 4.0])])
    firsts = set()
    for step in range(1, 30):
        rows = pool(ids=[0, 1, 3, 4], number=4, step=step)
        seen = kept.read(rows, 0)
        assert seen[1] == 5.0
        assert seen[[0, 2, 3]].min() >= 6.0
        firsts.add(seen.argmax().item())
    assert firsts == {0, 2, 3}


def test_with_nothing_known_all_rows_are_equal_but_for_the_lot():
    assert len(set(memory().read(pool(number=4), 0).tolist())) == 4


def test_old_losses_no_longer_count():
    kept = memory(max_age=2, known=[(0, [0], [1.0]), (1, [1], [1.0]), (3, [2], [1.0])])
    assert counted(kept, 3, 0) == [False, True, True, False, False, False]
    assert counted(kept, 4, 0) == [False, False, True, False, False, False]


def test_losses_from_before_a_change_of_the_architecture_do_not_count():
    """A change at the end of step 2, the third, is after three steps."""
    kept = memory(known=[(2, [0], [1.0]), (3, [1], [1.0])])
    assert counted(kept, 4, 3) == [False, True, False, False, False, False]


def test_losses_go_from_run_to_run(tmp_path):
    memory(known=[(7, [1, 2], [5.0, 4.0])]).save(tmp_path, "these rows")
    kept = memory()
    kept.load(str(tmp_path / NAME), "these rows")
    assert kept.losses.tolist() == [0.0, 5.0, 4.0, 0.0, 0.0, 0.0]
    assert kept.steps.tolist() == [-1, 0, 0, -1, -1, -1]


def test_losses_of_other_rows_are_refused(tmp_path):
    memory().save(tmp_path, "these rows")
    with pytest.raises(EffptError, match=r"is of other rows: it has 6 \(these rows\), .* are 6 \(others\)"):
        memory().load(str(tmp_path / NAME), "others")
    with pytest.raises(EffptError, match=r"it has 6 .* are 7"):
        memory(rows=7).load(str(tmp_path / NAME), "these rows")


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04cut short", "array", "other"])
def test_what_is_no_file_of_losses_is_refused(tmp_path, content):
    path = tmp_path / "losses.npz"
    if content == "array":
        np.save(tmp_path / "losses.npy", np.zeros(3))
        path = tmp_path / "losses.npy"
    elif content == "other":
        np.savez(path, other=np.zeros(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(EffptError, match=r"is no table of losses .* a run with `scorer: stale` has left"):
        memory().load(str(path), "these rows")


def test_a_folder_is_no_file_of_losses(tmp_path):
    with pytest.raises(EffptError, match="is no table of losses"):
        memory().load(str(tmp_path), "these rows")


# The table of a reference model.


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    return folder


def table(folder, model, data="these rows", rows=6):
    return IrreducibleLosses(folder, rows, data, model)


IDS, EPOCHS = np.array([4, 1, 1]), np.array([0, 0, 1])


def test_what_was_computed_is_known_to_the_next_run(tmp_path, model):
    first = table(tmp_path / "table", model)
    assert first.read("masks", IDS, EPOCHS) is None
    first.add("masks", IDS, EPOCHS, torch.tensor([1.0, 2.0, 3.0]))
    first.write()
    assert first.read("masks", IDS, EPOCHS).tolist() == [1.0, 2.0, 3.0]
    again = table(tmp_path / "table", model)
    assert again.read("masks", IDS[::-1], EPOCHS[::-1]).tolist() == [3.0, 2.0, 1.0]
    assert again.read("masks", np.array([4, 0]), np.array([0, 0])) is None  # one is not known
    assert again.read("masks", IDS[:1], EPOCHS[2:]) is None  # in another epoch it has another mask
    assert again.read("other masks", IDS, EPOCHS) is None


def test_many_steps_are_written_together(tmp_path, model):
    made = table(tmp_path / "table", model)
    for step in range(WAITING):
        assert made.read("masks", IDS[:1], EPOCHS[:1]) is None, step
        made.add("masks", IDS[:1], EPOCHS[:1], torch.tensor([float(step)]))
    assert made.read("masks", IDS[:1], EPOCHS[:1]).tolist() == [WAITING - 1.0]


def test_the_table_of_another_model_or_of_other_data_is_refused(tmp_path, model):
    table(tmp_path / "table", model)
    with pytest.raises(EffptError, match="holds the losses of another model or dataset"):
        table(tmp_path / "table", model, data="other rows")
    torch.manual_seed(99)
    tiny.model().save_pretrained(tmp_path / "other")
    with pytest.raises(EffptError, match="holds the losses of another model or dataset"):
        table(tmp_path / "table", tmp_path / "other")


@pytest.mark.parametrize("kind", ["file", "folder", "damaged"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path, model, kind):
    place = tmp_path / "table"
    if kind == "file":
        place.write_text("x")
    else:
        place.mkdir()
        (place / ("table.json" if kind == "damaged" else "x")).write_text("{")
    with pytest.raises(EffptError, match=r"`selection.table` .* give (a new|another) folder"):
        table(place, model)


def test_a_folder_without_weights_is_no_model(tmp_path):
    with pytest.raises(EffptError, match=r"has none of model.safetensors"):
        table(tmp_path / "table", tmp_path)
    assert not (tmp_path / "table").exists()


def fill(folder, model, rank, wait):
    wait.wait()
    for turn in range(20):
        made = table(folder / str(turn), model)
        made.add("masks", np.array([rank, rank + 2]), np.array([0, 0]), torch.tensor([rank + 1.0, rank + 1.0]))
        made.write()


def test_processes_begin_and_fill_one_table_together(tmp_path, model):
    context = multiprocessing.get_context("fork")
    wait = context.Barrier(2)
    folder = tmp_path / "tables"
    folder.mkdir()
    workers = [context.Process(target=fill, args=(folder, model, rank, wait)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for turn in range(20):
        found = table(folder / str(turn), model).read("masks", np.arange(4), np.zeros(4, np.int64))
        assert found is not None, turn
        assert found.tolist() == [1.0, 2.0, 1.0, 2.0]
        assert set(json.loads((folder / str(turn) / "table.json").read_text())) == {"data", "model"}
