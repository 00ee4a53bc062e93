"""A sweep that is killed at any moment leaves whole rows and no process, and resuming it completes it."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from collections import Counter

import psutil
import pytest

from kvexp.measurement import is_right
from kvexp.results.point_identity import identify
from kvexp.results.sweep_dir import is_sweep
from tests.helpers.processes import ended

SWEEP = (
    *("impl=torch", "layout=NHD,HND", "dtype=half,bfloat16,float", "workload=tiny", "device=cpu"),
    *("timer.relative_error=1e-9", "timer.max_samples=1000000", "timer.max_seconds=0.05", "tracking=none"),
)
POINTS = 24


def kill(process):
    """Kill a process; its children end with it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    for child in children:
        ended(child.pid)


def killed(place, words, after_s):
    """Whether kvexp was still at work after so many seconds: if so it was killed, its children too."""
    process = place.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        kill(process)
        return True
    assert process.returncode == 0
    return False


def check_whole(place):
    """Each line but the last of each file is an object."""
    for file in place.folder.glob("multirun/*/*/*/*.jsonl"):
        *lines, last = file.read_bytes().split(b"\n")
        assert all(isinstance(json.loads(line), dict) for line in lines)
        assert last == b"" or not last.endswith(b"}")


def survives(place, typed, kills, seed):
    """So many kills at random moments, each followed by a resume, leave what an undisturbed sweep leaves."""
    draw = random.Random(seed)
    begin = time.monotonic()
    assert place.run(*SWEEP).returncode == 0
    seconds = time.monotonic() - begin
    (reference,) = place.sweeps
    wanted = {identify(row) for row in place.rows() if is_right(row["status"])}
    assert len(wanted) == POINTS
    reference.rename(place.folder / "reference")
    words = SWEEP
    for _ in range(kills):
        if not killed(place, words, draw.uniform(0, seconds)):
            words = SWEEP  # It was done before it was to be killed: the next one begins anew.
            continue
        check_whole(place)
        words = (*SWEEP, "resume=true") if place.sweeps else SWEEP
    # A folder that was made and nothing more is of a sweep that had not begun: there is nothing to resume.
    last = typed("resume=true") if any(map(is_sweep, place.sweeps)) else typed(*SWEEP)
    assert last.returncode == 0, last.stderr
    newest = [sweep for sweep in place.sweeps if is_sweep(sweep)][-1]
    rows = [row for row in place.rows() if is_right(row["status"])]
    found = Counter(identify(json.loads(line)) for line in _lines(newest))
    assert set(found) == wanted
    assert set(found.values()) == {1}
    assert len(rows) % len(wanted) == 0


def _lines(sweep):
    for file in sweep.glob("*/rows.jsonl"):
        for line in file.read_text().splitlines():
            if line.endswith("}"):
                yield line


@pytest.mark.parametrize(("kills", "seed"), [(3, 6), pytest.param(50, 60, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_and_repeat_nothing(place, typed, kills, seed):
    survives(place, typed, kills, seed)


@pytest.mark.parametrize(
    ("number", "code", "isolation"), [(signal.SIGINT, 130, "process"), (signal.SIGTERM, 143, "inline")]
)
def test_a_sweep_that_is_told_to_end_says_where_its_rows_are(place, typed, number, code, isolation):
    process = place.start(*SWEEP, f"isolation={isolation}")
    first = process.stderr.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "NHD half: 4 ok" in first) == (code, True)
    (home,) = place.sweeps
    assert f"rows: {home}" in err
    reached = len(place.rows())
    assert 4 <= reached < POINTS
    (said,) = re.findall(
        r"^kvexp: interrupted after (\d+) of (\d+) points; this goes on: (.*)$", err, re.MULTILINE
    )
    assert said == (str(reached), str(POINTS), f"python -m kvexp resume={home.relative_to(place.folder)}")
    assert typed("report").returncode == 0
    assert f"{reached} of {POINTS} points: {reached} ok; " in (home / "report.md").read_text("utf-8")
    assert f"<span>{reached} of {POINTS} points: {reached} ok</span>" in (home / "report.html").read_text(
        "utf-8"
    )
    assert typed(*shlex.split(said[2])[3:]).returncode == 0
    assert typed("report").returncode == 0
    assert f": {POINTS} ok; " in (home / "report.md").read_text("utf-8")
    assert len(place.rows()) == len({identify(row) for row in place.rows()}) == POINTS


def test_a_second_sweep_in_the_folder_of_one_at_work_is_refused_and_writes_nothing(place, typed):
    words = [word for word in SWEEP if not word.startswith("timer.max_seconds")]
    first = place.start(*words, "timer.max_seconds=1", "isolation=inline")
    try:
        while not place.rows() and first.poll() is None:
            time.sleep(0.05)  # who asks without a pause keeps the processor from whoever measures
        os.kill(first.pid, signal.SIGSTOP)  # it stays at work however long the second one takes
        (home,) = place.sweeps
        before = sorted(home.rglob("*"))
        second = typed(f"resume={home}", *SWEEP)
        assert second.returncode == 2
        assert f"another sweep is at work there: {home}/.lock is held by process {first.pid}" in second.stderr
        assert sorted(home.rglob("*")) == before
    finally:
        kill(first)
