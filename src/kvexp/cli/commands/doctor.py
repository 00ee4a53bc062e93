"""Check what this machine can run; each line says what is missing and what would help.

Exit code 1 when something is missing that the defaults (impl=cuda workload=seed) need.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvexp import tracking
from kvexp.cli import say
from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError, KvexpError
from kvexp.gpu import lock
from kvexp.host import file_lock
from kvexp.host.addresses import mask_address
from kvexp.results.sweep_dir import LOCK
from kvexp.tracking.sqlite import check_database

TIMEOUT_S = 300
LEAST_FREE_BYTES = 10**9
"""More than a sweep of a thousand curves takes, with all its samples and runs."""
MARKS = {"ok": "ok", "without": "–", "no": "NO"}

Finding = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Return 0 when the defaults can run here, else 1.

    Raises:
        ConfigError: What was typed is wrong.
    """
    parser = Parser("kvexp doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    findings = [*_check_libraries(), *_check_locks(), _check_store(), _check_disk(), *_check_sweeps()]
    width = max(len(finding["what"]) for finding in findings)
    for finding in findings:
        fix = f"; {finding['fix']}" if finding["fix"] else ""
        say(f"{MARKS[finding['state']]:3} {finding['what']:{width}}  {finding['said']}{fix}\n")
    missing = [finding["what"] for finding in findings if finding["state"] == "no"]
    if missing:
        say(f"The defaults cannot run here: {', '.join(missing)}. experiment=quickstart runs what can.\n")
    return 1 if missing else 0


def _check_libraries() -> Iterator[Finding]:
    """Yield the findings of a process that imports every library, and how it ended if it died."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kvexp.bench.checkup"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        yield _finding(
            "libraries", "no", f"gave no answer within {TIMEOUT_S} s", "look at the GPU with nvidia-smi"
        )
        return
    for line in done.stdout.splitlines():
        try:
            finding = json.loads(line)
        except ValueError:
            continue  # what a library printed
        if isinstance(finding, dict) and finding.keys() == _finding("", "", "").keys():
            yield finding
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield _finding(
            "libraries", "no", f"the check ended with {done.returncode} ({words[:200]})", "make setup"
        )


def _check_locks() -> Iterator[Finding]:
    """Yield the GPUs on which a kvexp process of this host measures a curve now."""
    for uuid, holder in lock.list_holders():
        yield _finding("turn", "without", f"{holder} measures on {uuid}", "a sweep there waits for its turn")


def _check_store() -> Finding:
    """Check the store that `tracking=local` would use, without making it."""
    try:
        uri = tracking.settings("local", None, None, "kvexp", os.environ).uri or ""
        file = tracking.sqlite_file(uri)
        if file is None:
            return _finding("MLflow store", "without", f"{mask_address(uri)}, not checked")
        check_database(file)
    except (ConfigError, KvexpError, sqlite3.Error) as error:
        return _finding("MLflow store", "no", str(error), "tracking.uri=sqlite:////ELSEWHERE/mlflow.db")
    holder = file_lock.find_holder(file.parent / LOCK)
    state = f"in use by {holder}" if holder else "ready" if file.exists() else "made by the first sweep"
    return _finding("MLflow store", "ok", f"{file}, {state}")


def _check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    said = f"{free / 1e9:.1f} GB are free in {Path.cwd()}"
    if not os.access(Path.cwd(), os.W_OK):
        return _finding("disk", "no", f"{Path.cwd()} cannot be written to", "hydra.sweep.dir=ELSEWHERE")
    if free < LEAST_FREE_BYTES:
        return _finding("disk", "no", said, f"free {LEAST_FREE_BYTES / 1e9:.0f} GB")
    return _finding("disk", "ok", said)


def _check_sweeps() -> Iterator[Finding]:
    """Yield the sweeps below multirun/ that run now."""
    root = Path("multirun")
    for file in sorted((*root.glob(f"*/{LOCK}"), *root.glob(f"*/*/{LOCK}"))):
        if holder := file_lock.find_holder(file):
            yield _finding("sweep", "without", f"{file.parent} is measured by {holder}", "wait for it")


def _finding(what: str, state: str, said: str, fix: str = "") -> Finding:
    return {"what": what, "state": state, "said": said, "fix": fix}
