import json
import os
import shutil
import subprocess

import pytest
import torch

from kvexp.bench import environment, impl_hash
from kvexp.errors import Unsupported
from kvexp.measurement import ENVIRONMENT
from kvexp.results.point_identity import IDENTITY


@pytest.mark.parametrize("device", ["cpu", None])
def test_every_column_is_read_in_its_order(device):
    assert list(environment.read(device)) == list(ENVIRONMENT)


def test_a_cpu_has_the_columns_of_a_gpu():
    found = environment.read("cpu")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    gpu_s = ("device_uuid", "compute_capability", "sm_count", "l2_bytes", "driver")
    assert [found[column] for column in gpu_s] == [None] * 5
    assert found["torch"] == torch.__version__
    assert found["device_name"] == found["cpu"]
    assert found["device_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("count", "requested", "device"),
    [
        (0, "auto", "cpu"),
        (1, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (1, "cpu", "cpu"),
    ],
)
def test_a_device_is_resolved_by_what_is_there(monkeypatch, count, requested, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert environment.resolve_device(requested) == device


@pytest.mark.parametrize(
    ("count", "requested", "has"),
    [(0, "cuda", "no GPU that torch can use"), (1, "cuda:1", "1 GPU"), (2, "cuda:2", "2 GPUs")],
)
def test_a_device_that_is_not_there_is_named_beside_what_is(monkeypatch, count, requested, has):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(Unsupported) as raised:
        environment.resolve_device(requested)
    assert str(raised.value) == f"device={requested} was asked for and this machine has {has}"


class TestTheCommit:
    """What git knows of the checkout that the module's file is in."""

    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        """A checkout with this module in it, committed; and git in its folder."""
        root = tmp_path / "checkout"
        file = root / "src" / "kvexp" / "bench" / "environment.py"
        file.parent.mkdir(parents=True)
        file.write_text("a = 1\n")
        os.utime(file, (1e9, 1e9))
        monkeypatch.setattr(environment, "__file__", str(file))
        own = ("-c", "user.name=a", "-c", "user.email=a@b")

        def git(*words):
            done = subprocess.run(["git", *own, *words], cwd=root, check=True, capture_output=True, text=True)
            return done.stdout.strip()

        git("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message=one")
        return file, git

    def test_of_a_checkout_is_its_head(self, checkout):
        _, git = checkout
        assert environment._read_commit() == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": False}

    def test_with_changes_is_dirty_and_with_files_that_git_does_not_know_is_not(self, checkout):
        file, git = checkout
        git("config", "status.showUntrackedFiles", "all")
        file.with_name("new.py").touch()
        assert environment._read_commit() == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": False}
        file.write_text("a = 2000\n")
        assert environment._read_commit()["git_dirty"] is True

    def test_under_a_copied_git_folder_is_dirty_where_a_file_only_looks_the_same(self, checkout):
        """Other content of the same size, with the time that the copy kept."""
        file, git = checkout
        git("config", "core.trustctime", "false")
        git("config", "core.checkStat", "minimal")
        git("update-index", "--refresh")
        other = file.with_name("other")
        other.write_text("a = 2\n")
        os.utime(other, (1e9, 1e9))
        other.rename(file)
        assert git("status", "--porcelain") == ""
        assert environment._read_commit()["git_dirty"] is True

    @pytest.mark.parametrize("gone", [".git", ".git/objects"])
    def test_of_a_copy_without_its_git_folder_or_half_of_it_is_not_known(self, checkout, gone):
        file, _ = checkout
        shutil.rmtree(file.parents[3] / gone)
        assert environment._read_commit() == {"git_commit": None, "git_dirty": None}

    def test_of_another_repository_around_it_is_not_known(self, checkout):
        _, git = checkout
        git("rm", "--quiet", "-r", "--cached", ".")
        git("commit", "--quiet", "--allow-empty", "--message=two")
        assert environment._read_commit() == {"git_commit": None, "git_dirty": None}


def test_the_hash_of_the_sources_is_read_and_is_no_part_of_a_points_identity():
    assert environment.read("cpu")["source_hash"] == impl_hash.source_hash()
    assert "source_hash" not in IDENTITY
