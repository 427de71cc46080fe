"""Entry point of `effpt`: finds and runs the subcommand, and turns an error into one clear message."""

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from hf_effpt.core.errors import EffptError, RunStopped
from hf_effpt.core.files import is_disk_full
from hf_effpt.hub.private import words_without_secrets

from . import compare, doctor, evaluate, export, methods, pack, plan, plot, pretrain, push, settings, tokenizer

# In order of use. A command is a module with HELP, EXAMPLE, add_arguments(parser), and run(args), which
# may return an exit code.
_MODULES = (tokenizer, pack, plan, pretrain, doctor, plot, evaluate, compare, export, push, methods, settings)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
WITH_SETTINGS = ("pretrain", "doctor", "compare")  # commands that find `--section.key value` flags in `args.settings`

KEPT = {"compare": "runs", "pack": "shards"}  # what a command that is run again does not make again


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all subcommands."""
    style: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(
        prog="effpt",
        description="Pre-trains encoder language models efficiently and leaves stock Transformers checkpoints.",
        epilog="example:\n  effpt pretrain tiny --training.budget 90s\n\nAn example of each: effpt COMMAND --help",
        **style,
    )
    parser.add_argument("--version", action="version", version=f"effpt {version('hf_effpt')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            **style,
        )
        subparser.add_argument(
            "--import", dest="imports", action="append", default=[], metavar="MODULE",
            help="import a Python module that registers methods of your own; may be repeated",
        )  # fmt: skip
        module.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `effpt` and returns its exit code: 0, 2 for bad input, 130 if interrupted.

    It is 1 for a full disk, or an error that `doctor` has found; 75 if a run was stopped by a signal and can be
    resumed.

    Args:
        argv (`Sequence[str]`, *optional*): the words after `effpt`; by default those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not words:
        parser.print_help()
        return 0
    try:
        if not words[0].startswith("-") and words[0] not in COMMANDS:
            close = difflib.get_close_matches(words[0], COMMANDS, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"the commands are {', '.join(COMMANDS)}."
            raise EffptError(f"There is no command `{words[0]}`; {hint}")
        args, args.settings = parser.parse_known_args(words)
        if args.imports:
            from hf_effpt.core.registry import import_methods

            import_methods(args.imports)
        if args.settings and args.command not in WITH_SETTINGS:
            command = f"effpt {args.command}"
            raise EffptError(f"`{command}` does not take `{' '.join(args.settings)}`; see `{command} --help`.")
        return COMMANDS[args.command].run(args) or 0
    except RunStopped as stop:
        return _fail(stop.exit_code, str(stop))
    except EffptError as error:
        return _fail(2, str(error))
    except Exception as error:
        if not is_disk_full(error):
            raise
        where = f" while writing {name}" if (name := getattr(error, "filename", None)) else ""
        return _fail(1, f"The disk is full{where}. Free some space and run it again.{_resume(words)}")
    except KeyboardInterrupt:
        print(file=sys.stderr)  # ends the line of a progress bar
        return _fail(130, f"Interrupted.{_resume(words)}")


def _fail(code: int, message: str) -> int:
    print(f"effpt: {message}", file=sys.stderr)
    return code


def _resume(words: list[str]) -> str:
    words = words_without_secrets(words)
    if words[0] in KEPT:
        return f" Finished {KEPT[words[0]]} are kept; continue with: {shlex.join(['effpt', *words])}"
    if words[0] != "pretrain":
        return ""
    again = words if "--resume" in words else [*words, "--resume"]
    return f" If it has saved a checkpoint, continue with: {shlex.join(['effpt', *again])}"


if __name__ == "__main__":
    sys.exit(main())
