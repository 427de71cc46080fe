"""The `effpt` command: quick help, an example for each command, and errors a person can act on."""

import errno
import subprocess
import sys

import pytest

from hf_effpt.cli import main as cli
from hf_effpt.core.errors import EffptError
from tests.processes import Started


@pytest.mark.parametrize("words", [["--help"], ["methods", "--help"], ["pretrain", "--help"]])
def test_help_imports_nothing_slow(words):
    script = (
        f"import sys\nsys.argv = {['effpt', *words]!r}\nfrom hf_effpt.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('loaded:', sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_each_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  effpt {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_example_of_each_command_is_accepted_by_its_parser(command):
    words = cli.COMMANDS[command].EXAMPLE.split()[1:]
    args, extra = cli.build_parser().parse_known_args(words)
    assert args.command == command
    assert extra == [] or command in cli.WITH_SETTINGS


def test_without_words_shows_the_commands(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in cli.COMMANDS)


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["pretrian"]) == 2
    assert "did you mean `pretrain`?" in capsys.readouterr().err


def test_unknown_command_without_a_near_one_lists_all(capsys):
    assert cli.main(["xyzzy"]) == 2
    shown = "tokenizer, pack, plan, pretrain, doctor, plot, evaluate, compare, export, push, methods"
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["export", "a", "--out", "b"], ["push", "a", "o/n"], ["tokenizer", "a", "--out", "b"]]
)
def test_words_a_command_does_not_know_are_refused(words, capsys):
    assert cli.main([*words, "--dense-ish"]) == 2
    assert f"`effpt {words[0]}` does not take `--dense-ish`" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys):
    assert cli.main(["tokenizer", "corpus", "--out", "tok", "--voc", "64"]) == 2
    assert "does not take `--voc 64`" in capsys.readouterr().err


def failing(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setattr(cli.COMMANDS["pretrain"], "run", run)


def test_bad_input_is_one_message_without_traceback(monkeypatch, capsys):
    failing(monkeypatch, EffptError("`data.dataset` is empty."))
    assert cli.main(["pretrain", "tiny"]) == 2
    assert capsys.readouterr().err == "effpt: `data.dataset` is empty.\n"


def test_full_disk_names_the_file_and_how_to_go_on(monkeypatch, capsys):
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"))
    assert cli.main(["pretrain", "tiny"]) == 1
    shown = capsys.readouterr().err
    assert "disk is full while writing out/model.safetensors" in shown
    assert "effpt pretrain tiny --resume" in shown


def test_other_system_errors_keep_their_traceback(monkeypatch):
    failing(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "out"))
    with pytest.raises(PermissionError):
        cli.main(["pretrain", "tiny"])


@pytest.mark.parametrize(
    "words", [["tiny", "--data.dataset", "my corpus"], ["tiny", "--data.dataset", "my corpus", "--resume"]]
)
def test_interrupt_says_how_to_resume(monkeypatch, capsys, words):
    failing(monkeypatch, KeyboardInterrupt())
    assert cli.main(["pretrain", *words]) == 130
    assert "effpt pretrain tiny --data.dataset 'my corpus' --resume\n" in capsys.readouterr().err


def test_runs_as_a_module(tmp_path):
    """Which is how `accelerate launch -m hf_effpt.cli.main` starts it."""
    code = "import runpy; runpy.run_module('hf_effpt.cli.main', run_name='__main__', alter_sys=True)"
    process = Started(code, "pretran", folder=tmp_path)
    assert process.wait() == 2
    assert "did you mean `pretrain`" in process.said
