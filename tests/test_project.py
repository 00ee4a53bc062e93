"""The project around the code: set-up and the wheel say and do the same."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kvexp

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def ran(*command, cwd, **environment):
    """The finished process; PYTHONPATH and what else is named are in its environment."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_the_version_is_written_alike_in_both_places():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert kvexp.__version__ == project["version"]
    assert f"## {project['version']} " in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("module", ["kvexp", "kvexp.cli", "kvexp.sweep"])
def test_importing_imports_neither_torch_nor_mlflow(module, tmp_path):
    code = f"import sys, {module}; print(sorted({{'torch', 'triton', 'mlflow'}} & set(sys.modules)))"
    assert ran(sys.executable, "-c", code, cwd=tmp_path).stdout == "[]\n"


def test_make_alone_lists_every_target():
    done = ran("make", "--no-print-directory", cwd=ROOT)
    assert [line.split()[1] for line in done.stdout.splitlines()] == TARGETS


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    built = ran(sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={folder}", cwd=ROOT)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_works_in_another_folder(installed, tmp_path):

    path = {"PYTHONPATH": str(installed)}
    where = ran(sys.executable, "-c", "import kvexp; print(kvexp.__file__)", cwd=tmp_path, **path)
    assert Path(where.stdout.strip()).is_relative_to(installed)
    typed = "experiment=quickstart impl=torch workload=tiny device=cpu tracking=none timer.max_seconds=0.1"
    done = ran(sys.executable, "-m", "kvexp", *typed.split(), cwd=tmp_path, **path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("multirun/*/*/*/rows.jsonl"))) == 2


def test_the_wheel_carries_every_option_and_kernel(installed):
    options = {file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")}
    code = {
        file.relative_to(ROOT / "src") for file in (ROOT / "src").rglob("*") if file.suffix in (".py", ".cu")
    }
    assert {path for path in options if not (installed / "kvexp" / "conf" / path).is_file()} == set()
    assert {path for path in code if not (installed / path).is_file()} == set()
