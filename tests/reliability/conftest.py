"""kvexp as a process of its own, in an empty folder, with implementations that misbehave."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvexp.results import row_file

ROOT = Path(__file__).parents[2]
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
    def command(self):
        return [sys.executable, "-m", "kvexp"]

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
        return subprocess.Popen([*self.command, *words], cwd=self.folder, env=self.environment, **pipes)

    def run(self, *words, **how):
        """The process, done."""
        process = self.start(*words, **how)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    @property
    def sweeps(self):
        return sorted(self.folder.glob("multirun/*/*"))

    def rows(self):
        """Every row of every sweep, whole lines only."""
        return [row for sweep in self.sweeps for row in row_file.read(sweep, lambda _: None)]


@pytest.fixture
def place(tmp_path):
    """An empty folder, with a conf/ of one's own that names what misbehaves."""
    folder = tmp_path / "my_conf" / "impl"
    folder.mkdir(parents=True)
    for name, target in FAULTY.items():
        options = "by: exit\n" if name == "deadly" else ""
        (folder / f"{name}.yaml").write_text(f"# Misbehaves.\n_target_: {target}\n{options}")
    return Place(tmp_path)


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
