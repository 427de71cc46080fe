"""What is published: both archives hold all that a user needs, and the command works once installed."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive, built from a copy of the tree; the wheel is built from the source archive."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "hf_effpt", tree / "hf_effpt", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,), (source,) = (tree / "dist").glob("*.whl"), (tree / "dist").glob("*.tar.gz")
    return wheel, source


def shipped():
    """The files of the package folder that belong in an archive."""
    files = (path for path in (ROOT / "hf_effpt").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_wheel_holds_the_whole_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == shipped()


def test_source_archive_holds_the_whole_package_and_the_licence(archives):
    with tarfile.open(archives[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert shipped() | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_installed_command_and_package_data_work(archives, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    # the dependencies are those of this process; the package itself comes from the wheel
    site = sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)})
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(archives[0])], check=True)

    shown = subprocess.run(
        [venv / "bin" / "effpt", "methods"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "layerdrop: " in shown.stdout
    script = (
        "import hf_effpt, hf_effpt.hub.card\nfrom hf_effpt import Recipe\n"
        "print(hf_effpt.__file__)\nprint(Recipe.load('tiny').model.size)"
    )
    loaded = run(script, folder=tmp_path, path=[site])
    assert loaded.said.splitlines()[-2:] == [str(Path(site) / "hf_effpt" / "__init__.py"), "tiny"]
