"""The project around the code: set-up, make targets and the wheel."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kvexp
from kvexp.bench.impl_hash import source_hash

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def run(*command, cwd, **environment):
    """Run a command with more variables in its environment."""
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


ROOMS = ("cli", "sweep", "sweep.progress", "results.row_file", "report", "tracking")
HEAVY = {"torch", "triton", "mlflow", "pandas"}


@pytest.mark.parametrize("module", ["kvexp", *(f"kvexp.{room}" for room in ROOMS)])
def test_importing_imports_nothing_heavy(module, tmp_path):
    code = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, cwd=tmp_path).stdout == "[]\n"


def test_make_alone_lists_every_target():
    done = run("make", "--no-print-directory", cwd=ROOT)
    assert [line.split()[1] for line in done.stdout.splitlines()] == TARGETS


@pytest.fixture
def python(tmp_path):
    """Replace Python by a script that records its arguments and PYTHONPATH, and fails at some of them."""
    file, asked = tmp_path / "python", tmp_path / "asked"
    file.write_text(f"""#!/bin/sh
echo "$PYTHONPATH $*" >> {asked}
case "$*" in $FAILING) exit 3 ;; esac
""")
    file.chmod(0o755)

    def make(target, failing="nothing"):
        asked.unlink(missing_ok=True)
        done = run("make", target, f"PY={file}", cwd=ROOT, FAILING=failing, PYTHONPATH="/tmp/site")
        return done.returncode, asked.read_text().splitlines()

    return make


@pytest.mark.parametrize("failing", ["nothing", "* not alone*", "*-m alone*", "*pytest*"])
def test_the_gpu_tests_that_measure_run_alone_whatever_became_of_the_others(python, failing):
    code, asked = python("test-gpu", failing)
    assert (code != 0) == (failing != "nothing")
    assert [line.partition(" -m pytest ")[2] for line in asked if "pytest" in line] == [
        "tests/gpu -m not alone and not slow --numprocesses=12 --dist=loadgroup",
        "tests/gpu -m alone and not slow",
    ]


def test_without_xdist_the_gpu_tests_run_one_after_the_other(python):
    code, asked = python("test-gpu", "*import*xdist*")
    assert code == 0
    assert not any("numprocesses" in line for line in asked)


def test_without_a_gpu_no_gpu_test_is_started(python):
    code, asked = python("test-gpu", "*import*torch*")
    assert code != 0
    assert not any("pytest" in line for line in asked)


@pytest.mark.parametrize("target", ["test-gpu", "targets", "run", "doctor"])
def test_a_python_that_is_typed_runs_the_sources_and_no_other_is_made(python, target):
    dry = run("make", "--dry-run", "--always-make", target, "PY=python3", cwd=ROOT)
    assert dry.returncode == 0
    assert ".venv" not in dry.stdout
    code, asked = python(target)
    assert code == 0
    assert {line.split(" ")[0] for line in asked} == {f"{ROOT}/src:/tmp/site"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel and unpack it into a folder."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={folder}", cwd=ROOT)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_works_in_another_folder(installed, tmp_path):
    path = {"PYTHONPATH": str(installed)}
    where = run(sys.executable, "-c", "import kvexp; print(kvexp.__file__)", cwd=tmp_path, **path)
    assert Path(where.stdout.strip()).is_relative_to(installed)
    typed = "experiment=quickstart impl=torch workload=tiny device=cpu tracking=none timer.max_seconds=0.1"
    done = run(sys.executable, "-m", "kvexp", *typed.split(), cwd=tmp_path, **path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("multirun/*/*/*/rows.jsonl"))) == 2


def test_the_wheel_has_the_hash_of_the_checkout(installed, tmp_path):
    code = "from kvexp.bench.impl_hash import source_hash; print(source_hash())"
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.stdout.strip() == source_hash()


def test_the_wheel_carries_every_option_and_kernel(installed):
    options = {file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")}
    code = {
        file.relative_to(ROOT / "src") for file in (ROOT / "src").rglob("*") if file.suffix in (".py", ".cu")
    }
    assert {path for path in options if not (installed / "kvexp" / "conf" / path).is_file()} == set()
    assert {path for path in code if not (installed / path).is_file()} == set()
