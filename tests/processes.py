"""Processes for tests that begin with torch and transformers imported, which takes seconds, and without the package.

They are forked from a server that has done nothing but these imports. Where it matters how an interpreter starts, or
which environment variables are read during imports, a test starts one by `subprocess`.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["datasets", "transformers.trainer", "transformers.models.auto.modeling_auto"]
    + [f"transformers.models.{name}.modeling_{name}" for name in ("bert", "modernbert", "electra")]
)


def preload(*modules: str) -> None:
    """Has all processes begin with these modules imported instead, of a script that has started none yet."""
    _server.set_forkserver_preload([*modules])


class Started:
    """A process that runs some code; what it prints goes to a file.

    Args:
        code (`str`): a script.
        *arguments (`str`): its `sys.argv[1:]`.
        folder (`Path`): its working directory.
        environment (`Mapping[str, str]`, *optional*): all its variables; by default those of this process.
        path (`Sequence[str]`): what it finds modules in before all else.
    """

    def __init__(
        self,
        code: str,
        *arguments: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        path: Sequence[str] = (),
        name: str = "said.txt",
    ) -> None:
        self.file = folder / name
        variables = dict(os.environ if environment is None else environment)
        places = [*path, *_path_of_an_interpreter(folder, variables)]
        self._process = _server.Process(
            target=_execute, args=(code, arguments, str(folder), variables, places, str(self.file)), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid

    def kill(self) -> None:
        """Ends the process by SIGKILL, at once."""
        self._process.kill()

    def wait(self, seconds: float = 200) -> int:
        """The exit code, as `subprocess` has it; a process that does not end is killed."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        return self._process.exitcode

    @property
    def said(self) -> str:
        """Output of the process so far, errors included."""
        return self.file.read_text()


def run(code: str, *arguments: str, **settings) -> Started:
    """A process that has ended well; what a failing one said is in the error."""
    process = Started(code, *arguments, **settings)
    assert process.wait() == 0, process.said[-10_000:]
    return process


def _path_of_an_interpreter(folder, environment):
    """Not that of the tests, which a test may have changed."""
    command = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path))"]
    return json.loads(subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True).stdout)


def _execute(code, arguments, folder, environment, path, said):
    output = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
