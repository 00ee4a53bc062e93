"""`kvexp doctor` in a process of its own: what is missing is a line with what would help."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch

from kvexp.gpu import lock
from kvexp.results import sweep_dir as sweep_folder


def doctor(folder, **environment):
    """Runs it in that folder; gives the process and its lines by what they are about."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "KVEXP_"))}
    command = [sys.executable, "-m", "kvexp", "doctor"]
    done = subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr
    *lines, _ = [line for line in done.stdout.splitlines() if line] + [""]
    return done, {line[4:].split("  ")[0].strip(): line for line in lines}


def test_it_says_what_is_there_and_what_would_help_and_leaves_nothing_behind(tmp_path):
    done, lines = doctor(tmp_path)
    assert lines["torch"].startswith(f"ok  torch         {torch.__version__}, built ")
    assert {"driver", "NVRTC", "triton", "CUDA headers", "MLflow store", "disk", "vllm"} <= set(lines)
    assert "made by the first sweep" in lines["MLflow store"]
    assert {"sweep", "turn"} & set(lines) == set()
    assert list(tmp_path.iterdir()) == []
    if not torch.cuda.is_available():
        assert done.returncode == 1
        assert "or measure impl=torch workload=tiny" in lines["GPU"]
        assert "install driver 580 or newer" in lines["driver"]
        assert "The defaults cannot run here: GPU, driver." in done.stdout


def test_a_library_that_takes_its_process_down_is_a_line(tmp_path):
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import os\nos.write(2, b'no symbol\\n')\nos._exit(9)\n")
    done, lines = doctor(tmp_path, PYTHONPATH=str(broken.parent))
    assert done.returncode == 1
    assert lines["libraries"].startswith("NO  libraries")
    assert "the check ended with 9 (no symbol); make setup" in lines["libraries"]


def test_a_broken_store_sweeps_at_work_and_a_gpu_that_is_measured_on_are_lines(tmp_path):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_text("no database " * 1000)
    locks = {"KVEXP_LOCK_DIR": str(tmp_path / "locks")}
    homes = [tmp_path / "multirun" / name for name in ("2026-11-21/10-00", "a_name")]
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(*next(iter(locks.items())))
        for home in homes:
            home.mkdir(parents=True)
            stack.enter_context(sweep_folder.hold(home))
        stack.enter_context(lock.gpu_lock("GPU-1"))
        done, lines = doctor(tmp_path, **locks)
    assert done.returncode == 1
    assert lines["MLflow store"].startswith("NO  MLflow store")
    assert "not a database" in lines["MLflow store"]
    assert done.stdout.count(f"is measured by process {os.getpid()}") == len(homes)
    assert f"process {os.getpid()} measures on GPU-1; a sweep there waits for its turn" in lines["turn"]
