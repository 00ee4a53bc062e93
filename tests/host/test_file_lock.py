import fcntl
import os
import subprocess
import sys
import time

import pytest

from kvexp.host import file_lock

HOLD = """
import pathlib, sys
from kvexp.host import file_lock

with file_lock.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the file until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_file_that_another_process_holds_is_refused_with_its_number(tmp_path, other):
    begin = time.monotonic()
    with (
        pytest.raises(TimeoutError, match=f"is held by process {other.pid}"),
        file_lock.locked(tmp_path / "lock", 0.2),
    ):
        pass
    assert 0.2 <= time.monotonic() - begin < 5
    assert file_lock.find_holder(tmp_path / "lock") == f"process {other.pid}"


def test_a_killed_process_leaves_no_lock(tmp_path, other):
    other.kill()
    other.wait()
    with file_lock.locked(tmp_path / "lock"):
        assert file_lock.find_holder(tmp_path / "lock") == f"process {os.getpid()}"
    assert file_lock.find_holder(tmp_path / "lock") is None


def test_asking_for_the_holder_blocks_nobody(tmp_path, monkeypatch):
    """`holder` has the file, shared, for an instant."""
    with (tmp_path / "lock").open("w") as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        monkeypatch.setattr(file_lock.time, "sleep", lambda _: asked.close())
        with file_lock.locked(tmp_path / "lock"):
            assert asked.closed


def test_a_missing_file_has_no_holder(tmp_path):
    assert file_lock.find_holder(tmp_path / "lock") is None
    assert list(tmp_path.iterdir()) == []
