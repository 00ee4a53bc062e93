"""What others could have put into the cache is neither run nor written to."""

import os
import subprocess
import sys

import pytest

from kvexp.host import disk_cache

OTHER_USER = 4242


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's home folder; KVEXP_CACHE_DIR names a folder that is not there yet."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path / "chosen"))
    disk_cache._warn.cache_clear()
    return folder


def give_away(path):
    """Make it another user's."""
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, OTHER_USER, -1)


def open_to_group(path):
    path.chmod(path.stat().st_mode | 0o020)


def open_to_all(path):
    path.chmod(path.stat().st_mode | 0o002)


def make_link(path):
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


SPOILT = {
    give_away: f"made by user {OTHER_USER}",
    open_to_group: "writable by others",
    open_to_all: "writable by others",
    make_link: "a symbolic link",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_folder_that_others_could_fill_is_left_alone_and_named_once(tmp_path, home, caplog, spoil):
    chosen = tmp_path / "chosen"
    disk_cache.keep("x.cubin", b"theirs")
    spoil(chosen)
    assert disk_cache.read("x.cubin") is None
    disk_cache.keep("x.cubin", b"mine")
    assert disk_cache.read("x.cubin") == b"mine"
    assert (chosen / "x.cubin").read_bytes() == b"theirs"
    assert (home / ".cache" / "kvexp" / "x.cubin").read_bytes() == b"mine"
    assert [record.getMessage() for record in caplog.records] == [
        f"kvexp: the cache folder {chosen} ({SPOILT[spoil]}) is not used; "
        f"kernels are kept in {home}/.cache/kvexp"
    ]


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("name", ["x.cubin", "contracts/x.json"])
def test_an_entry_that_others_could_write_is_none_and_is_replaced(tmp_path, spoil, name):
    disk_cache.keep(name, b"theirs")
    spoil(tmp_path / "chosen" / name)
    assert disk_cache.read(name) is None
    disk_cache.keep(name, b"mine")
    assert disk_cache.read(name) == b"mine"
    assert not (tmp_path / "chosen" / name).is_symlink()


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_folder_inside_that_others_could_fill_is_left_alone(tmp_path, spoil):
    disk_cache.keep("contracts/x.json", b"theirs")
    spoil(tmp_path / "chosen" / "contracts")
    disk_cache.keep("contracts/x.json", b"mine")
    assert disk_cache.read("contracts/x.json") is None
    assert (tmp_path / "chosen" / "contracts" / "x.json").read_bytes() == b"theirs"


def test_an_entry_that_is_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "chosen").mkdir()
    os.mkfifo(tmp_path / "chosen" / "x.cubin")
    assert disk_cache.read("x.cubin") is None


def test_where_no_folder_is_the_users_own_a_process_has_one_for_itself(tmp_path, home, caplog):
    for folder in (tmp_path / "chosen", home / ".cache" / "kvexp"):
        folder.mkdir(parents=True)
        open_to_all(folder)
    disk_cache.keep("x.cubin", b"mine")
    assert disk_cache.read("x.cubin") == b"mine"
    private = disk_cache.cache_dir()
    assert (private.stat().st_uid, private.stat().st_mode & 0o777) == (os.geteuid(), 0o700)
    assert (
        f"{tmp_path}/chosen (writable by others), nor {home}/.cache/kvexp (writable by others)" in caplog.text
    )
    assert list((tmp_path / "chosen").iterdir()) == list((home / ".cache" / "kvexp").iterdir()) == []


def test_a_commands_processes_share_its_folder_and_the_word_comes_once(tmp_path, home):
    (tmp_path / "chosen").mkdir()
    open_to_all(tmp_path / "chosen")
    (home / ".cache").mkdir()
    (home / ".cache" / "kvexp").symlink_to(tmp_path)
    words = [
        "impl=torch",
        "workload=tiny",
        "workload.num_tokens=[1]",
        "timer=none",
        "device=cpu",
        "tracking=none",
    ]
    command = [sys.executable, "-m", "kvexp", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("is not used; kernels are kept in")) == (0, 1)
    assert not list((tmp_path / "chosen").iterdir())
    assert not (tmp_path / "contracts").exists()


def test_a_path_through_a_link_of_ones_own_is_fine(tmp_path, monkeypatch, caplog):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "short").symlink_to(tmp_path / "scratch")
    monkeypatch.setenv("KVEXP_CACHE_DIR", str(tmp_path / "short" / "kernels"))
    disk_cache.keep("x.cubin", b"mine")
    assert (tmp_path / "scratch" / "kernels" / "x.cubin").read_bytes() == b"mine"
    assert caplog.text == ""
