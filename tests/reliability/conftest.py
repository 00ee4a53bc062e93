"""kvexp as a process of its own, in an empty folder, with implementations that misbehave."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvexp import cli
from kvexp.results import row_file
from kvexp.tracking import connect, settings
from tests.helpers.inline_tracker import InlineTracker, used_by_commands

ROOT = Path(__file__).parents[2]
TINY = ("impl=torch", "workload=tiny", "timer=none", "device=cpu", "isolation=inline")
UNTRACKED = (*TINY, "tracking=none")
FAULTY = {
    "hanging": "tests.helpers.faulty_impls.Hanging",
    "stubborn": "tests.helpers.faulty_impls.Stubborn",
    "greedy": "tests.helpers.faulty_impls.Greedy",
    "deadly": "tests.helpers.wrong_impls.Deadly",
    "idle": "tests.helpers.wrong_impls.Idle",
}


@dataclass
class Place:
    """A folder where kvexp is typed."""

    folder: Path

    @property
    def environment(self):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "MLFLOW_"))
        }
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return kept | {"PYTHONPATH": path}

    def start(self, *words, **how):
        """The process, just started."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
        return subprocess.Popen(
            [sys.executable, "-m", "kvexp", *words], cwd=self.folder, env=self.environment, **pipes
        )

    def run(self, *words, **how):
        """The process, done."""
        process = self.start(*words, **how)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    @property
    def sweeps(self):
        return sorted(self.folder.glob("multirun/*/*"))

    def copy(self, sweep, to="2000-01-01/10-00-00-000000"):
        """The sweep's folder, copied below multirun/, where it is one of here."""
        return shutil.copytree(sweep, self.folder / "multirun" / to)

    def rows(self):
        """Every row of every sweep, whole lines only."""
        return [row for sweep in self.sweeps for row in row_file.read(sweep, lambda _: None)]


def make_place(home):
    """The folder, with a conf/ of one's own that names what misbehaves."""
    folder = home / "my_conf" / "impl"
    folder.mkdir(parents=True)
    for name, target in FAULTY.items():
        options = "by: exit\n" if name == "deadly" else ""
        (folder / f"{name}.yaml").write_text(f"# Misbehaves.\n_target_: {target}\n{options}")
    return Place(home)


@pytest.fixture
def place(tmp_path):
    """An empty folder."""
    return make_place(tmp_path)


@pytest.fixture(scope="session")
def untracked(tmp_path_factory):
    """The folder of a sweep of one curve that was measured once for all; `place.copy` takes it over."""
    there = make_place(tmp_path_factory.mktemp("untracked"))
    assert there.run(*UNTRACKED).returncode == 0
    (home,) = there.sweeps
    return home


@pytest.fixture
def typed(place, monkeypatch, capfd):
    """Types a command line in this process: most tests need none of its own, which imports for seconds."""
    monkeypatch.chdir(place.folder)
    for name in os.environ.keys() - place.environment.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", place.environment["PYTHONPATH"])

    def type_in(*words):
        capfd.readouterr()
        code = cli.dispatch(words)
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    return type_in


@pytest.fixture
def inline_tracker():
    """What is typed in this process tracks in this process, too."""
    with used_by_commands(InlineTracker()):
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The folder of a store that is ready: making MLflow's tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    connect(settings("local", f"sqlite:///{folder}/mlflow.db", None, "kvexp", {}))
    return folder


@pytest.fixture
def database(store, place):
    """A copy of that store where kvexp is typed."""
    return Path(shutil.copytree(store, place.folder / "mlruns")) / "mlflow.db"


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of a few bytes; skips where that is not allowed."""
    mounted = []

    def made(size):
        folder = tmp_path / f"disk {len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not allowed here")
        mounted.append(folder)
        return folder

    yield made
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
