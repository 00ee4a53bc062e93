"""Turns at a GPU, between real processes; no GPU is needed for that."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvexp import file_lock
from kvexp.errors import Unsupported
from kvexp.gpu import lock

UUID = "GPU-1"
OTHER = 1001
"""A user who is not root."""
TAKE = """
import sys
from kvexp.gpu import lock

for _ in range(int(sys.argv[2])):
    with lock.turn(sys.argv[1], lambda holder: print("waits for", holder, flush=True)):
        print("has it", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    place = tmp_path / "locks"
    monkeypatch.setenv("KVEXP_LOCK_DIR", str(place))
    return place


class Process:
    """Takes its turns; each ends with a line to it."""

    def __init__(self, uuid=UUID, times=1, script=TAKE, **how):
        self.popen = subprocess.Popen(
            [sys.executable, "-c", script, uuid, str(times)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how,
        )  # fmt: skip
        self.words = f"process {self.popen.pid}"

    def says(self):
        return self.popen.stdout.readline().strip()

    def end_turn(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()


@pytest.fixture
def process():
    """Starts a Process that has its turn, or waits for it; all are killed at the end."""
    started = []

    def start(*arguments, **how):
        started.append(Process(*arguments, **how))
        return started[-1]

    yield start
    for one in started:
        one.popen.kill()
        one.popen.communicate()


def test_a_turn_begins_when_the_one_before_it_ends_and_who_waits_is_told_once(process):
    first = process()
    assert first.says() == "has it"
    second = process()
    assert second.says() == f"waits for {first.words}"
    assert dict(lock.holders()) == {UUID: first.words}
    first.end_turn()
    assert second.says() == "waits for None"
    assert second.says() == "has it"
    assert dict(lock.holders()) == {UUID: second.words}


def test_a_killed_process_leaves_its_turn_and_its_place_in_the_queue(process):
    holder = process()
    assert holder.says() == "has it"
    waiting = process()
    assert waiting.says() == f"waits for {holder.words}"
    third = process()
    assert third.says() == f"waits for {holder.words}"
    waiting.popen.kill()
    holder.popen.kill()
    assert third.says() == "waits for None"
    assert third.says() == "has it"


def test_who_has_had_a_turn_comes_after_who_waits(process):
    again = process(times=2)
    assert again.says() == "has it"
    waiting = process()
    assert waiting.says() == f"waits for {again.words}"
    again.end_turn()
    assert again.says() in (f"waits for {waiting.words}", "waits for another process")
    assert waiting.says() == "waits for None"
    assert waiting.says() == "has it"
    assert dict(lock.holders()) == {UUID: waiting.words}
    waiting.end_turn()
    assert [again.says(), again.says()] == ["waits for None", "has it"]


def test_turns_never_overlap(tmp_path):
    script = """
import os, sys
from kvexp.gpu import lock

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(25):
    with lock.turn(sys.argv[1]):
        os.write(log, f"{os.getpid()}\\n".encode())
        os.sched_yield()
        os.write(log, f"{os.getpid()}\\n".encode())
"""
    log = tmp_path / "log"
    command = [sys.executable, "-c", script, UUID, str(log)]
    started = [subprocess.Popen(command) for _ in range(4)]
    assert [one.wait() for one in started] == [0] * 4
    found = log.read_text().split()
    assert len(found) == 4 * 25 * 2
    assert found[::2] == found[1::2]


def test_gpus_are_apart(process):
    one, other = process("GPU-1"), process("GPU-2")
    assert one.says() == other.says() == "has it"
    assert dict(lock.holders()) == {"GPU-1": one.words, "GPU-2": other.words}


def test_what_a_process_has_started_does_not_keep_its_turn(process):
    parent = """
import subprocess, sys
from kvexp.gpu import lock

with lock.turn(sys.argv[1]):
    subprocess.Popen(["sh", "-c", "echo $$; exec sleep 60"], close_fds=False)
    sys.stdin.readline()
"""
    dead = process(script=parent)
    left = int(dead.says())
    dead.popen.kill()
    dead.popen.wait()
    try:
        os.kill(left, 0)
        assert dict(lock.holders()) == {}
    finally:
        os.kill(left, 9)


def test_a_process_that_has_its_turn_goes_on():
    told = []
    with lock.turn(UUID, told.append):
        with lock.turn(UUID, told.append):
            pass
        assert dict(lock.holders()) == {UUID: f"process {os.getpid()}"}
    assert dict(lock.holders()) == {}
    assert told == []


def test_a_cpu_has_no_turns(folder):
    with lock.turn(None):
        assert not folder.exists()


def test_the_files_are_every_user_s_whatever_the_umask(folder):
    before = os.umask(0o077)
    try:
        with lock.turn(UUID):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes == {f"{UUID}.lock": 0o666, f"{UUID}.next": 0o666}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become two other users")
def test_two_users_take_turns(monkeypatch, process):
    script = f"import os, sys\nimport kvexp.gpu.lock\nos.setuid(int(sys.argv[2]))\nsys.argv[2] = 1\n{TAKE}"
    with ExitStack() as stack:
        # tmp_path is its owner's alone.
        shared = stack.enter_context(tempfile.TemporaryDirectory())
        Path(shared).chmod(0o1777)
        monkeypatch.setenv("KVEXP_LOCK_DIR", f"{shared}/locks")
        first = process(times=OTHER, script=script)
        assert first.says() == "has it"
        second = process(times=OTHER + 1, script=script)
        assert second.says() == f"waits for {first.words}"
        first.end_turn()
        assert [second.says(), second.says()] == ["waits for None", "has it"]
        assert {file.stat().st_uid for file in Path(shared, "locks").iterdir()} == {OTHER}


class TestFilesThatCannotBeUsed:
    def refused(self, why):
        said = rf"^turns at {UUID} need files in .*\({why}\); KVEXP_LOCK_DIR can name another folder"
        with pytest.raises(Unsupported, match=said), lock.turn(UUID):
            pass

    def test_a_folder_that_is_none_is_refused_with_what_to_do(self, folder):
        folder.write_text("a file")
        self.refused("Not a directory")

    def test_a_folder_that_cannot_be_made_is_refused(self, monkeypatch, tmp_path):
        monkeypatch.setenv("KVEXP_LOCK_DIR", str(tmp_path / "missing" / "locks"))
        self.refused("No such file or directory")

    def test_a_folder_that_cannot_be_written_is_refused(self, monkeypatch, process):
        script = f"""
import os, sys
from kvexp.gpu import lock
from kvexp.errors import Unsupported

if os.getuid() == 0:
    os.setuid({OTHER})
try:
    lock.turn(sys.argv[1]).__enter__()
except Unsupported as refusal:
    print(refusal)
"""
        with tempfile.TemporaryDirectory() as parent:
            Path(parent).chmod(0o555)
            monkeypatch.setenv("KVEXP_LOCK_DIR", f"{parent}/locks")
            said = process(script=script).says()
        assert f"{parent}/locks, which cannot be used (Permission denied);" in said

    def test_a_folder_elsewhere_is_not_followed(self, folder, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
        self.refused("Not a directory")
        assert list((tmp_path / "elsewhere").iterdir()) == []

    @pytest.mark.parametrize("name", [f"{UUID}.lock", f"{UUID}.next"])
    def test_a_file_elsewhere_is_not_followed(self, folder, tmp_path, name):
        folder.mkdir()
        treasure = tmp_path / "treasure"
        treasure.write_text("dear")
        (folder / name).symlink_to(treasure)
        self.refused("Too many levels of symbolic links")
        assert treasure.read_text() == "dear"
        assert file_lock.holder(folder / name) is None


def test_the_folder_is_one_for_all_users(monkeypatch):
    monkeypatch.delenv("KVEXP_LOCK_DIR")
    monkeypatch.setenv("TMPDIR", "/home/somebody/tmp")
    assert lock.folder() == Path("/tmp/kvexp-locks")


class TestAHolderThatWasKilled:
    @pytest.fixture
    def dying(self, folder):
        """A process that the lock's file names, though it no longer has the lock."""
        with lock.turn(UUID):
            pass
        ended = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (folder / f"{UUID}.lock").write_text(str(ended.pid))
        yield ended
        ended.kill()
        ended.wait()

    def test_is_waited_for_until_it_has_ended(self, dying):
        killer = threading.Timer(0.5, dying.kill)
        begin = time.monotonic()
        killer.start()
        with lock.turn(UUID):
            assert 0.4 < time.monotonic() - begin < lock.DYING_S

    def test_is_not_waited_for_without_end(self, dying, monkeypatch):
        monkeypatch.setattr(lock, "DYING_S", 0.3)
        begin = time.monotonic()
        with lock.turn(UUID):
            assert 0.3 < time.monotonic() - begin < 5
        assert dying.poll() is None


def test_who_only_asks_for_the_holder_is_nobody_to_wait_for(folder):
    with lock.turn(UUID):
        pass
    told = []
    with (folder / f"{UUID}.lock").open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        with lock.turn(UUID, told.append):
            assert file_lock.holder(folder / f"{UUID}.lock") == f"process {os.getpid()}"
    assert told == []
