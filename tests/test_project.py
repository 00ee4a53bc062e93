"""The project around the code: set-up, documents and the wheel say and do the same."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import kvexp
from kvexp import cli, sweep
from kvexp.cli import commands
from tests import measured

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
COMMANDS = re.findall(r"^python -m kvexp .*$", README, re.MULTILINE)
FILES = dict(re.findall(r"`([\w./]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", README, re.DOTALL))


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


def slug(heading):
    """The anchor that a heading gets where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def stranger(tmp_path):
    """A folder that holds the files that README shows, and nothing else."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_target_that_a_document_names_exists(document):
    named = re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text("utf-8"), re.MULTILINE)
    assert set(named) <= set(TARGETS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_within_the_project_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_the_readmes_files_are_found():
    assert set(FILES) == {"my_kernels.py", "my_conf/impl/index_put.yaml", "my_conf/workload/decode.yaml"}
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_can_be_typed(command, stranger, monkeypatch):
    monkeypatch.chdir(stranger)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sweep, "run", lambda jobs, settings, command: 0)
    words = shlex.split(command, comments=True)[3:]
    # What reads sweeps finds those that the README names, both measured.
    for name in ("10-00-00-0", "11-00-00-0") if words[0] in commands.names() else ():
        curves = [measured.curve({1: 1.0, 64: 2.0}, impl=impl) for impl in ("cuda", "triton")]
        measured.sweep(stranger / "multirun" / "2026-11-21" / name, curves)
    # A machine without a GPU cannot run the defaults, and the doctor says so.
    assert cli.dispatch(words) in ({0, 1} if words == ["doctor"] else {0})


def test_the_readmes_implementation_is_right_and_refuses_what_it_says(stranger):
    typed = "-m kvexp --config-dir my_conf impl=index_put workload=tiny device=cpu tracking=none"
    timed = ran(sys.executable, *typed.split(), cwd=stranger)
    assert timed.returncode == 0, timed.stderr
    refused = ran(sys.executable, *typed.split(), "kv_cache_dtype=fp8", cwd=stranger)
    assert refused.returncode == 3
    assert "impl=index_put has no kv_cache_dtype=fp8_e4m3" in refused.stdout


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
