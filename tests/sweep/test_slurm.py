"""The batch script of docs/scale.md measures in an allocation of Slurm, on Ray's workers."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvexp.results import row_file
from tests.helpers import slurm

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
(SCRIPT,) = re.findall(r"^```\n(#!/bin/bash\n.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
ONE_NODE = ("--nodes=1", "--gpus-per-node=0", "--output=job.log", "kvexp.sbatch")
ON_CPUS = (
    *("impl=torch", "workload=tiny", "timer=none", "tracking=none"),
    *("device=cpu", "hydra.launcher.workers=2"),
)

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'kvexp[ray]')"
    ),
    pytest.mark.skipif(bool(reason := slurm.find_reason_to_skip()), reason=reason),
]


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """Start a Slurm of one node; return the variables with which sbatch finds it."""
    with slurm.run_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        programs = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        yield environment | {"PATH": programs}


@pytest.fixture
def submit(variables, tmp_path):
    """Submits the script with these arguments of its own and of sbatch."""
    (tmp_path / "kvexp.sbatch").write_text(SCRIPT)

    def run(*words):
        command = ["sbatch", "--wait", *ONE_NODE, *ON_CPUS, *words]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, timeout=300)

    return run


def test_its_words_are_measured_on_the_nodes_and_its_exit_code_is_kvexps(submit, tmp_path):
    done = submit("dtype=half,bfloat16")
    said = (tmp_path / "job.log").read_text()
    assert done.returncode == 0, said
    (sweep,) = tmp_path.glob("multirun/*/*")
    assert [row["status"] for row in row_file.read(sweep)] == ["verified"] * 8
    assert " on worker " not in said  # a place has its node's name
    assert submit("dtype=quarter").returncode == 2
