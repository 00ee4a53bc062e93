"""The command in its own process: how fast it answers, what it imports, and where its output cannot go."""

import json
import os
import shlex
import subprocess
import sys
import time

import pytest

from tests.helpers.recorded_rows import row

AT_ONCE = 4
"""How many times the import of Hydra an answer may take, with the same processes prestarted."""
HYDRA = (
    "import sys; from kvexp.sweep import prestart\nwith prestart.start_for(sys.argv[1:]): import hydra.main"
)
ANSWERS = {
    "--help": 0,
    "impl=tornch": 2,
    "impl=tornch layout=NHD,HND": 2,
    "workload.num_hedas=8": 2,
}
FULL = "kvexp: cannot write the output (No space left on device)\n"
HEAVY = ("torch", "triton", "mlflow", "pandas", "numpy")


def start(*arguments, cwd):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HYDRA_", "MLFLOW_"))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("line", ["--help", "workload.num_hedas=8"])
def test_help_and_typos_answer_at_once(tmp_path, line):
    for _ in range(3):  # other processes may disturb one
        seconds = []
        for arguments, code in ((("-m", "kvexp"), ANSWERS[line]), (("-c", HYDRA), 0)):
            begin = time.perf_counter()
            assert start(*arguments, *line.split(), cwd=tmp_path).returncode == code
            seconds.append(time.perf_counter() - begin)
        answer, imports = seconds
        if answer < AT_ONCE * imports:
            break
    assert answer < AT_ONCE * imports
    assert list(tmp_path.iterdir()) == []


def test_help_and_typos_import_nothing_heavy(tmp_path):
    code = (
        "import sys; from kvexp.cli import dispatch\nfor line in sys.argv[1:]:\n    dispatch(line.split()); "
        f"print(*[m for m in (*{HEAVY!r}, 'hydra') if m in sys.modules], file=sys.stderr)"
    )
    process = start("-c", code, *ANSWERS, cwd=tmp_path)
    found = [line for line in process.stderr.splitlines() if not line.startswith("kvexp: ")]
    assert found == ["", "hydra", "hydra", "hydra"]


@pytest.mark.parametrize(
    ("unbuffered", "typed", "code", "said"),
    [
        *(("", f"{words} >/dev/full", 1, FULL) for words in ("--help", "--version", "export rows.jsonl")),
        *((unbuffered, "--cfg job >/dev/full", 1, FULL) for unbuffered in ("", "1")),
        ("1", "--help >/dev/full 2>/dev/full", 1, ""),
        ("", "--info | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("", "export rows.jsonl | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("1", "--cfg job >&-", 0, ""),
        ("", "export rows.jsonl >&-", 0, ""),
        ("1", "--help <&- >&- 2>&-", 0, ""),
        (
            "1",
            "export nope >/dev/full",
            2,
            "kvexp: nope does not exist; give a sweep's folder or a rows.jsonl file\n",
        ),
    ],
)
def test_what_is_closed_or_full_gives_no_traceback(tmp_path, typed, code, said, unbuffered):
    rows = [json.dumps(row(num_tokens=size)) + "\n" for size in range(1, 150)]  # more than a pipe holds
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    command = f"{shlex.quote(sys.executable)} -m kvexp {typed}"
    environ = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (code, said)


# A sweep of one curve that needs neither a device nor time: its row is made up.
MADE_UP = """
import sys, types
from kvexp.sweep import curve_run
from kvexp.cli import main
from kvexp.measurement import Measurement

class MadeUp:
    is_host_sensitive = True
    already_done = ()
    worker = types.SimpleNamespace(traceback="")

    def __init__(self, experiment, *_):
        self.experiment = experiment

    def measure(self):
        for case in self.experiment.cases():
            yield Measurement(case, "verified", "made up").row(), ()

curve_run.begin = MadeUp
curve_run.WorkerSupervisor.start = lambda *_: None
sys.argv = ["kvexp", "tracking=none", "isolation=inline", *sys.argv[1:]]
main()
"""


def test_a_reader_that_leaves_changes_neither_the_exit_code_nor_what_is_said(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        # So many that composing them is announced there.
        [sys.executable, "-c", MADE_UP, "impl=torch", "workload.num_heads=range(1,12)"],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert process.returncode == 0
    assert process.stderr.splitlines()[-1].startswith("rows: ")
    assert "Error" not in process.stderr


@pytest.mark.parametrize("line", ["--help", "--version", "--cfg job"])
def test_a_print_whose_reader_leaves_is_no_error(tmp_path, line):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "kvexp", *line.split()]
    process = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")


def test_a_terminal_without_a_mu_still_shows_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = start("-c", MADE_UP, "impl=torch", cwd=tmp_path)
    assert process.returncode == 0
    assert "latency (?s)" in process.stdout
    assert "Traceback" not in process.stderr


def test_an_interrupt_while_modules_are_imported_has_no_traceback(tmp_path):
    script = (
        "import sys\nclass Interrupt:\n    def find_spec(self, name, *_):\n"
        "        if name == 'kvexp.sweep.prestart': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\nfrom kvexp.__main__ import main\nmain()"
    )
    process = start("-c", script, "--help", cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")


def test_the_console_script_is_the_module(tmp_path):
    script = "import sys; from kvexp.__main__ import main; sys.argv[0] = 'kvexp'; main()"
    by_script = start("-c", script, "measure", cwd=tmp_path)
    by_module = start("-m", "kvexp", "measure", cwd=tmp_path)
    assert by_script.stderr == by_module.stderr
    assert by_script.returncode == by_module.returncode == 2
