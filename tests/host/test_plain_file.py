"""Files are opened and replaced where they are: no link is followed, and nothing waits."""

import os

import pytest

from kvexp.host import plain_file


@pytest.fixture
def kept(tmp_path):
    """A file elsewhere that must stay as it is, and a link to it."""
    target = tmp_path / "target"
    target.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(target)
    yield link
    assert target.read_text() == "precious"


def test_the_outermost_part_that_is_gone_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    assert plain_file.find_gone(tmp_path / "a") is None
    assert plain_file.find_gone(tmp_path / "link") is None
    assert plain_file.find_gone(tmp_path / "a" / "b" / "c") == tmp_path / "a" / "b"
    assert plain_file.find_gone(tmp_path / "d" / "e" / "f") == tmp_path / "d"


def test_a_link_is_replaced_by_the_file(kept):
    plain_file.replace(kept, b"new")
    assert (kept.is_symlink(), kept.read_bytes()) == (False, b"new")
    assert sorted(path.name for path in kept.parent.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC])
def test_a_link_is_not_opened(kept, flags):
    with pytest.raises(OSError, match="it is a symbolic link, which is not followed") as refusal:
        plain_file.open_plain(kept, flags)
    assert refusal.value.filename == str(kept)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY])
def test_a_pipe_whose_other_end_nobody_opens_is_refused_at_once(tmp_path, flags):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"it is a pipe, a device or a folder|No such device"):
        plain_file.open_plain(tmp_path / "pipe", flags)


def test_a_file_is_read_through_a_link_and_a_pipe_or_a_device_is_not(kept, tmp_path):
    with open(kept, opener=plain_file.open_regular) as file:
        assert file.read() == "precious"
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="it is a pipe, a device or a folder"):
            plain_file.open_regular(name, os.O_RDONLY)


@pytest.mark.parametrize("target", ["/proc/self/fd/1", "/dev/null", "folder", "pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path, target):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OSError, match="it is a pipe, a device or a folder, not a file"):
        plain_file.replace(link, b"new")
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_a_file_has_the_mode_of_any_other_and_a_failure_leaves_the_old_one(tmp_path):
    (tmp_path / "other").touch()
    plain_file.replace(tmp_path / "file", b"old")
    assert os.lstat(tmp_path / "file").st_mode == os.lstat(tmp_path / "other").st_mode
    with pytest.raises(OSError, match="File name too long") as failure:
        plain_file.replace(tmp_path / ("x" * 300), b"new")
    assert failure.value.filename == str(tmp_path / ("x" * 300))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]
