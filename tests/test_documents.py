"""The documents are correct: their links, targets, commands and files work."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kvexp import cli
from kvexp.cli import commands
from kvexp.gpu import nvml
from kvexp.measurement import COLUMNS
from kvexp.results import sweep_dir
from kvexp.results.row_file import read
from kvexp.sweep.place import HERE
from kvexp.sweep.ray_cluster import places
from tests.helpers import cheap_compose, fake_sweep, recorded_rows

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
OP = (DOCS / "add-an-op.md").read_text("utf-8")
IMPLEMENTATION = (DOCS / "add-an-implementation.md").read_text("utf-8")

FILE = re.compile(r"`([\w./]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", re.DOTALL)
"""A file that a document shows: its name, then its content."""

TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
FILES = {name: text for document in DOCUMENTS for name, text in FILE.findall(document.read_text("utf-8"))}
COMMAND = re.compile(r"^python -m kvexp (?:.*\\\n)*.*$", re.MULTILINE)
"""A command to type as it is; a backslash continues the line."""


def find_commands(text):
    """List the commands of a document, each on one line."""
    return [command.replace("\\\n", " ") for command in COMMAND.findall(text)]


COMMANDS = sorted({command for file in DOCUMENTS for command in find_commands(file.read_text("utf-8"))})


def list_pages(entries):
    """List the pages of the site's navigation."""
    for entry in entries:
        inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [inside] if isinstance(inside, str) else list_pages(inside)


def slug(heading):
    """Return the anchor of a Markdown heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def stranger(tmp_path):
    """Make a folder with the files that the documents show, and examples/ of the checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.fixture
def type_in(stranger, monkeypatch, capfd):
    """Types a command in that folder and in this process, without MLflow and on a CPU where it measures."""
    monkeypatch.chdir(stranger)
    monkeypatch.syspath_prepend(stranger)
    monkeypatch.setenv("PYTHONPATH", str(stranger), prepend=os.pathsep)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def type_in(command, isolation="inline"):
        for name in FILES:  # each command imports them anew
            sys.modules.pop(name.removesuffix(".py"), None)
        importlib.invalidate_caches()
        words = shlex.split(command)[3:]
        if words[0] not in commands.names() and "--help" not in words:
            words += ["tracking=none", "device=cpu", "timer.max_seconds=0.05", f"isolation={isolation}"]
        capfd.readouterr()
        return subprocess.CompletedProcess(words, cli.dispatch(words), *capfd.readouterr())

    yield type_in
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def read_last_rows(folder):
    """Read the rows of the last sweep in a folder."""
    last = max(folder.glob("multirun/*/*"))
    return [row for file in last.glob("*/rows.jsonl") for row in read(file)]


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
        # The site holds docs/ alone.
        assert document.parent == ROOT or file.resolve().is_relative_to(DOCS), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_the_navigation_names_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    pages = {file.name for file in DOCS.glob("*.md")}
    assert pages <= set(list_pages(site["nav"]))


def test_the_documents_files_and_commands_are_found():
    assert {
        "my_kernels.py",
        "my_conf/impl/index_put.yaml",
        "my_conf/workload/my_model.yaml",
        "my_op.py",
        "my_conf/op/write_with_largest.yaml",
    } <= set(FILES)
    assert len(COMMANDS) > 30


def test_git_ignores_what_the_documents_make(tmp_path):
    folders = re.findall(r" (?:hydra\.sweep\.dir=|--output |--figure )([\w./]+)", "\n".join(COMMANDS))
    made = [*FILES, *folders]
    assert {"my_sweeps/heads", "points.parquet"} <= set(made)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    asked = ["git", "-C", tmp_path, "check-ignore", *made]
    ignored = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    assert sorted(ignored) == sorted(made)


def test_the_timer_of_the_page_on_measuring_times_a_curve(stranger, type_in):
    (command,) = (command for command in COMMANDS if "timer=process_time" in command)
    done = type_in(command)
    assert done.returncode == 0, done.stderr
    assert [(row["status"], row["timer"]) for row in read_last_rows(stranger)] == [("ok", "process_time")] * 4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_a_document_can_be_typed(command, stranger, monkeypatch):
    monkeypatch.chdir(stranger)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fake_sweep.put(monkeypatch)
    monkeypatch.setattr(nvml, "list_gpus", lambda visible: ["GPU-1", "GPU-2"])
    monkeypatch.setattr(places, "list_places", lambda *_: HERE)  # of a Ray cluster
    cheap_compose.choose_jobs(monkeypatch, cheap_compose.list_one_by_one)
    words = shlex.split(command, comments=True)[3:]
    # What reads sweeps finds those that the documents name, all measured.
    named = [word for word in words if "/" in word and "://" not in word]
    reads = words == ["resume=true"] or words[0] in commands.names()
    for name in (named or ["multirun/2026-11-21/10-00-00-0"]) if reads else ():
        curves = [
            recorded_rows.curve({1: 1.0, 64: 2.0}, impl=impl, layout=layout)
            for impl in ("cuda", "triton", "triton_tuned")
            for layout in ("NHD", "HND")
        ]
        recorded_rows.sweep(stranger / name, curves)
        sweep_dir.write_command(stranger / name, ["impl=cuda,triton", "layout=NHD,HND"], [])
    # A machine without a GPU cannot run the defaults, and the doctor says so.
    assert cli.dispatch(words) in ({0, 1} if words == ["doctor"] else {0})


def test_the_implementation_of_the_how_to_page_comes_to_what_the_page_says(stranger, type_in):
    ask, verify, refuse, *timed, report = find_commands(IMPLEMENTATION)
    skipped, incorrect = re.findall(r"```\n((?:\w+ .*\n)+)```", IMPLEMENTATION)

    assert type_in(ask).returncode == 0
    done = type_in(verify)
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in read_last_rows(stranger)] == ["verified"] * 16
    assert set(read_last_rows(stranger)[0]) == set(COLUMNS) - {"repetition"}

    done = type_in(refuse)
    assert (done.returncode, skipped in done.stdout) == (3, True)

    file = stranger / "my_kernels.py"
    right = file.read_text()
    wrong = re.search(r"write `(token = .*?)`", IMPLEMENTATION)[1]
    file.write_text(re.sub(r"token = has_slot.*", wrong, right))
    done = type_in(verify, isolation="process")
    assert (done.returncode, incorrect in done.stdout) == (1, True), done.stdout
    file.write_text(right)

    for command in timed:
        done = type_in(command.replace("workload=quickstart", "workload=tiny"))
        assert done.returncode == 0, done.stderr
        assert [row["status"] for row in read_last_rows(stranger)] == ["ok"] * 8
    assert type_in(report).returncode == 0
    assert "sort=true" in next(stranger.glob("multirun/*/*/report.md")).read_text().lower()


def test_the_op_of_the_how_to_page_comes_to_what_the_page_says(stranger, type_in):
    ask, measure = find_commands(OP)
    (broken,) = re.findall(r"```\n( +\w+ .*)\n```", OP)

    assert type_in(ask).returncode == 0
    assert type_in(measure).returncode == 0
    rows = read_last_rows(stranger)
    assert [row["status"] for row in rows] == ["ok"] * 8
    assert {row["contract"] for row in rows} == {"full"}
    # A token has 2 heads, 32 + 32 items of 2 bytes in each, and a slot of 8 bytes; 2 more items are written.
    assert {row["bytes_moved"] // row["num_tokens"] for row in rows} == {2 * 2 * (32 + 32) * 2 + 2 * 2 + 8}
    listed = type_in("python -m kvexp --config-dir my_conf --help").stdout
    assert "write_with_largest" in listed

    file = stranger / "my_op.py"
    wrong = re.search(r"largest: `(largest = .*?)`", OP)[1]
    file.write_text(re.sub(r"largest = key.*", wrong, file.read_text()))
    done = type_in(ask)
    assert (done.returncode, done.stdout.count(broken)) == (1, 2), done.stdout
    assert type_in(measure).returncode == 1
    assert [row["status"] for row in read_last_rows(stranger)] == ["incorrect"] * 8
