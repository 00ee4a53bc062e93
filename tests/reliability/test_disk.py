"""A disk that is full stops the sweep with that message; what was measured before is whole and is resumed."""

import subprocess
from dataclasses import replace

from kvexp.results.point_identity import identify
from tests.helpers import limits
from tests.reliability.conftest import UNTRACKED

TOKENS = "workload.num_tokens=[" + ",".join(str(number) for number in range(1, 41)) + "]"
SWEEP = (*UNTRACKED, TOKENS)


def check_stopped(done, place, why):
    """The sweep stopped at that, and said how many rows are whole; so many are."""
    assert done.returncode == 1, done.stderr
    (complaint,) = [line for line in done.stderr.splitlines() if line.startswith("kvexp: ")]
    rows = place.rows()
    assert 0 < len(rows) < 40
    assert f"rows.jsonl ({why}), so the sweep stops; the {len(rows)} rows before it are whole" in complaint
    (file,) = place.sweeps[0].glob("*/rows.jsonl")
    assert file.read_bytes().endswith(b"}\n")


def check_resumed(done, place):
    """The rest is measured, and nothing twice."""
    assert done.returncode == 0, done.stderr
    assert len(place.rows()) == len({identify(row) for row in place.rows()}) == 40


def test_a_write_that_is_cut_short_leaves_no_piece_of_a_row(place, typed):
    done = place.run(*SWEEP, preexec_fn=limits.small_files(20_000))
    check_stopped(done, place, "File too large")
    check_resumed(typed("resume=true"), place)


def test_a_full_disk_stops_the_sweep_and_resuming_completes_it_when_there_is_room(
    place, typed, small_disk, monkeypatch
):
    there = replace(place, folder=small_disk(100_000))
    monkeypatch.chdir(there.folder)
    check_stopped(typed(*SWEEP), there, "No space left on device")
    subprocess.run(["mount", "-o", "remount,size=1000000", str(there.folder)], check=True)
    check_resumed(typed("resume=true"), there)


def test_a_disk_that_is_full_from_the_start_is_one_sentence(typed, small_disk, monkeypatch):
    monkeypatch.chdir(small_disk(4096))
    done = typed(*SWEEP)
    assert done.returncode == 2
    assert done.stderr.startswith("kvexp: ")
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
