import json

import pytest

from hf_effpt.cli.main import main
from hf_effpt.cli.shared import numbers, words
from hf_effpt.comparison import experiment
from hf_effpt.core.errors import EffptError
from hf_effpt.evaluation import results_file, suite
from tests.unit.comparison.example_report import example_report


def test_lists_of_words_and_numbers():
    assert words("blimp, cola,,") == ["blimp", "cola"]
    assert numbers("--fractions", "0.5,1") == [0.5, 1.0]
    with pytest.raises(EffptError, match=r"`--fractions` is '0.5,all'"):
        numbers("--fractions", "0.5,all")


SCORE = {"value": 0.5, "n": 10, "spread": 0.1, "notes": []}


def measured(asked):
    """A stand-in for `evaluate`, which keeps its arguments in `asked` and gives one score."""

    def evaluate(model, tasks, *, record, **rest):
        asked.update(rest, tasks=tasks)
        result = {"model": "m", "scores": {"blimp/pll_word_l2r": SCORE}}
        record.save(result, partial=True)
        assert json.loads(record.path.read_text())["partial"]
        return result

    return evaluate


def test_evaluate_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(suite, "evaluate", measured(asked))
    (tmp_path / "evaluation.json").write_text(json.dumps({"scores": {"cola/mcc@default": {"value": 0.1}}, "x": 1}))
    words = ["evaluate", str(tmp_path), "--tasks", "blimp,cola", "--data", "d", "--seeds", "2", "--lora", "4"]
    assert main(words) == 0
    assert asked == {"tasks": ["blimp", "cola"], "data": "d", "text": None, "protocol": "default",
                     "seeds": 2, "lora": 4, "pairs_per_paradigm": None}  # fmt: skip
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(written["scores"]) == {"blimp/pll_word_l2r", "cola/mcc@default"}  # of an earlier call too
    assert (written["x"], written["partial"]) == (1, False)
    assert "| blimp/pll_word_l2r | 0.5000 | 0.1000 | 10 |" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "new" / "folder" / "e.json")]) == 0
    assert (tmp_path / "new" / "folder" / "e.json").is_file()


def test_evaluate_checks_where_the_results_go_and_shows_them_if_they_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "evaluate", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for out, message in ((tmp_path, "which is a folder"), (tmp_path / "file" / "e.json", "is not a writable folder")):
        assert main(["evaluate", str(tmp_path), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(suite, "evaluate", lambda *_, **__: {"model": "m", "scores": {"blimp/pll_word_l2r": SCORE}})
    monkeypatch.setattr(results_file, "write_json", lambda *_: (_ for _ in ()).throw(EffptError("the disk is full")))
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "| blimp/pll_word_l2r | 0.5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    ["--seeds 0", "--lora 4 --tasks blimp", "--pairs_per_paradigm 3 --tasks cola", "--text a.txt --tasks cola",
     "--data d --tasks loss"],
)  # fmt: skip
def test_evaluate_refuses_flags_that_no_task_reads(tmp_path, capsys, flags):
    assert main(["evaluate", str(tmp_path), *flags.split()]) == 2
    assert f"`{flags.split()[0]}` does nothing here" in capsys.readouterr().err


def test_evaluate_refuses_what_it_does_not_know(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--budget", "1min"]) == 2
    assert "does not take `--budget 1min`" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "none")]) == 2
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    (tmp_path / "config.json").write_text("{}")
    assert main(["evaluate", str(tmp_path), "--tasks", ","]) == 2
    assert "No tasks were named" in capsys.readouterr().err


def test_compare_prints_the_verdicts(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(
        experiment, "compare", lambda recipes, out, **rest: asked.update(rest, recipes=recipes) or example_report()
    )
    words = [
        "compare",
        "a.yaml",
        "b.yaml",
        "--out",
        "r",
        "--fractions",
        "0.5,1",
        "--tasks",
        "blimp",
        "--primary",
        "blimp/pll_word_l2r",
        "--data.split",
        "x",
    ]
    assert main(words) == 0
    assert asked["recipes"] == ["a.yaml", "b.yaml"]
    assert asked["overrides"] == ["--data.split", "x"]
    assert asked["fractions"] == [0.5, 1.0]
    assert asked["primary"] == "blimp/pll_word_l2r"
    out = capsys.readouterr().out
    for arm in example_report()["arms"]:
        assert arm["verdict"]["text"] in out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["tiny", "tiny"], "Two arms are called"),
        (["tiny", "nowhere.yaml"], "There is no recipe file nowhere.yaml"),
        (["tiny", "layerdrop_tiny", "--seeds", "0"], "`seeds` is 0"),
        (["tiny", "layerdrop_tiny", "--fractions", "0,1"], "A fraction is a share"),
        (["tiny", "layerdrop_tiny", "--budget", "soon"], "Cannot read the budget"),
        (["tiny", "layerdrop_tiny", "--tasks", "blimp"], "BLiMP needs data"),
        (["tiny", "layerdrop_tiny", "--primary", "cola/mcc@default"], "the tasks (none) give no scores"),
        (["tiny", "layerdrop_tiny", "--gpus", "7"], "There is no GPU 7"),
        (["tiny", "layerdrop_tiny", "--protocol", "glue"], "There is no protocol `glue`"),
        (["tiny", "layerdrop_tiny", "--data.dataset", "nowhere/"], "There is no file or folder 'nowhere/'"),
        (["tiny", "layerdrop_tiny", "--training.lr_scheduler_type", "constant"], "only fully decayed"),
        (["tiny", "layerdrop_tiny", "--budget", "10steps", "--training.warmup_steps", "20"], "Arm `tiny` at 5steps"),
    ],
)
def test_bad_input_to_compare_is_one_clear_line_before_any_run(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words, "--out", "r"]) == 2
    message = capsys.readouterr().err
    assert error in message
    assert "Traceback" not in message
    assert not (tmp_path / "r" / "runs").exists()
