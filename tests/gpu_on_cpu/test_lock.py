"""The lock of a GPU, between real processes; it needs no GPU."""

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

from kvexp.errors import Unsupported
from kvexp.gpu import lock
from kvexp.host import file_lock

UUID = "GPU-1"
OTHER = 1001
"""A user who is not root."""
TAKE = """
import sys
from kvexp.gpu import lock

for _ in range(int(sys.argv[2])):
    with lock.gpu_lock(sys.argv[1], lambda holder: print("waits for", holder, flush=True)):
        print("has it", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    place = tmp_path / "locks"
    monkeypatch.setenv("KVEXP_LOCK_DIR", str(place))
    return place


class Process:
    """Locks the GPU so many times; a line to it ends each."""

    def __init__(self, uuid=UUID, times=1, script=TAKE, **how):
        self.popen = subprocess.Popen(
            [sys.executable, "-c", script, uuid, str(times)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how,
        )  # fmt: skip
        self.words = f"process {self.popen.pid}"

    def read_line(self):
        return self.popen.stdout.readline().strip()

    def release(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()


@pytest.fixture
def process():
    """Starts a Process that holds the lock or waits for it; all are killed at the end."""
    started = []

    def start(*arguments, **how):
        started.append(Process(*arguments, **how))
        return started[-1]

    yield start
    for one in started:
        one.popen.kill()
        one.popen.communicate()


def test_who_waits_is_told_of_the_holder_once_and_follows_it(process):
    first = process()
    assert first.read_line() == "has it"
    second = process()
    assert second.read_line() == f"waits for {first.words}"
    assert dict(lock.list_holders()) == {UUID: first.words}
    first.release()
    assert second.read_line() == "waits for None"
    assert second.read_line() == "has it"
    assert dict(lock.list_holders()) == {UUID: second.words}


def test_a_killed_process_leaves_the_lock_and_the_queue(process):
    holder = process()
    assert holder.read_line() == "has it"
    waiting = process()
    assert waiting.read_line() == f"waits for {holder.words}"
    third = process()
    assert third.read_line() == f"waits for {holder.words}"
    waiting.popen.kill()
    holder.popen.kill()
    assert third.read_line() == "waits for None"
    assert third.read_line() == "has it"


def test_who_has_held_the_lock_queues_behind_who_waits(process):
    again = process(times=2)
    assert again.read_line() == "has it"
    waiting = process()
    assert waiting.read_line() == f"waits for {again.words}"
    again.release()
    assert again.read_line() in (f"waits for {waiting.words}", "waits for another process")
    assert waiting.read_line() == "waits for None"
    assert waiting.read_line() == "has it"
    assert dict(lock.list_holders()) == {UUID: waiting.words}
    waiting.release()
    assert [again.read_line(), again.read_line()] == ["waits for None", "has it"]


def test_two_processes_never_hold_the_lock_at_once(tmp_path):
    script = """
import os, sys
from kvexp.gpu import lock

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(25):
    with lock.gpu_lock(sys.argv[1]):
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


def test_each_gpu_has_its_own_lock(process):
    one, other = process("GPU-1"), process("GPU-2")
    assert one.read_line() == other.read_line() == "has it"
    assert dict(lock.list_holders()) == {"GPU-1": one.words, "GPU-2": other.words}


def test_a_child_does_not_keep_the_lock_of_its_dead_parent(process):
    parent = """
import subprocess, sys
from kvexp.gpu import lock

with lock.gpu_lock(sys.argv[1]):
    subprocess.Popen(["sh", "-c", "echo $$; exec sleep 60"], close_fds=False)
    sys.stdin.readline()
"""
    dead = process(script=parent)
    left = int(dead.read_line())
    dead.popen.kill()
    dead.popen.wait()
    try:
        os.kill(left, 0)
        assert dict(lock.list_holders()) == {}
    finally:
        os.kill(left, 9)


def test_a_process_that_holds_the_lock_goes_on():
    told = []
    with lock.gpu_lock(UUID, told.append):
        with lock.gpu_lock(UUID, told.append):
            pass
        assert dict(lock.list_holders()) == {UUID: f"process {os.getpid()}"}
    assert dict(lock.list_holders()) == {}
    assert told == []


def test_a_cpu_is_not_locked(folder):
    with lock.gpu_lock(None):
        assert not folder.exists()


def test_every_user_may_write_the_files_whatever_the_umask(folder):
    before = os.umask(0o077)
    try:
        with lock.gpu_lock(UUID):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes == {f"{UUID}.lock": 0o666, f"{UUID}.next": 0o666}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become two other users")
def test_two_users_share_the_lock(monkeypatch, process):
    script = f"import os, sys\nimport kvexp.gpu.lock\nos.setuid(int(sys.argv[2]))\nsys.argv[2] = 1\n{TAKE}"
    with ExitStack() as stack:
        # tmp_path is its owner's alone.
        shared = stack.enter_context(tempfile.TemporaryDirectory())
        Path(shared).chmod(0o1777)
        monkeypatch.setenv("KVEXP_LOCK_DIR", f"{shared}/locks")
        first = process(times=OTHER, script=script)
        assert first.read_line() == "has it"
        second = process(times=OTHER + 1, script=script)
        assert second.read_line() == f"waits for {first.words}"
        first.release()
        assert [second.read_line(), second.read_line()] == ["waits for None", "has it"]
        assert {file.stat().st_uid for file in Path(shared, "locks").iterdir()} == {OTHER}


class TestFilesThatCannotBeUsed:
    def refused(self, why):
        said = rf"^locking {UUID} needs files in .*\({why}\); KVEXP_LOCK_DIR can name another folder"
        with pytest.raises(Unsupported, match=said), lock.gpu_lock(UUID):
            pass

    def test_a_file_in_place_of_the_folder_is_refused_with_what_to_do(self, folder):
        folder.write_text("a file")
        self.refused("Not a directory")

    def test_a_folder_that_cannot_be_created_is_refused(self, monkeypatch, tmp_path):
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
    lock.gpu_lock(sys.argv[1]).__enter__()
except Unsupported as refusal:
    print(refusal)
"""
        with tempfile.TemporaryDirectory() as parent:
            Path(parent).chmod(0o555)
            monkeypatch.setenv("KVEXP_LOCK_DIR", f"{parent}/locks")
            said = process(script=script).read_line()
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
        assert file_lock.find_holder(folder / name) is None


def test_all_users_have_the_same_folder(monkeypatch):
    monkeypatch.delenv("KVEXP_LOCK_DIR")
    monkeypatch.setenv("TMPDIR", "/home/somebody/tmp")
    assert lock.lock_dir() == Path("/tmp/kvexp-locks")


class TestAHolderThatWasKilled:
    @pytest.fixture
    def dying(self, folder):
        """A process that the lock's file names, though it no longer has the lock."""
        with lock.gpu_lock(UUID):
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
        with lock.gpu_lock(UUID):
            assert 0.4 < time.monotonic() - begin < lock.EXIT_TIMEOUT_S

    def test_is_not_waited_for_forever(self, dying, monkeypatch):
        monkeypatch.setattr(lock, "EXIT_TIMEOUT_S", 0.3)
        begin = time.monotonic()
        with lock.gpu_lock(UUID):
            assert 0.3 < time.monotonic() - begin < 5
        assert dying.poll() is None


def test_nobody_waits_for_who_only_asks_for_the_holder(folder):
    with lock.gpu_lock(UUID):
        pass
    told = []
    with (folder / f"{UUID}.lock").open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        with lock.gpu_lock(UUID, told.append):
            assert file_lock.find_holder(folder / f"{UUID}.lock") == f"process {os.getpid()}"
    assert told == []
