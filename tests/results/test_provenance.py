import getpass
import subprocess
from pathlib import Path

import pytest

import kvexp
from kvexp.measurement import ENVIRONMENT
from kvexp.results import provenance, sweep_dir
from kvexp.results.provenance import Provenance, find_fault, read_source_tags


def test_what_a_sweeps_folder_keeps_is_read_back(tmp_path):
    origin = Provenance({"mlflow.user": "maria", "team": "x"}, {"workload.num_heads": "8,16"})
    sweep_dir.write_command(tmp_path, [], [], origin)
    assert sweep_dir.read_provenance(tmp_path) == origin
    sweep_dir.write_command(tmp_path, [], [], Provenance({"team": "later"}))
    assert sweep_dir.read_provenance(tmp_path) == origin


@pytest.mark.parametrize(
    "kept",
    [
        *(None, "text", [], {}, {"tags": None}, {"tags": [1]}, {"tags": {"team": 1, "a": None}}),
        {"tags": {"mlflow.parentRunId": "x", "kvexp.whole": "true", "mlflow.note.content": "x", "host": "x"}},
        {"params": {"a b": "x", "": "x", "a" * 300: "x", "layout": ["NHD"]}},
    ],
)
def test_what_only_kvexp_and_mlflow_set_and_what_is_no_text_is_left_out(kept):
    assert Provenance.parse(kept) == Provenance()


def test_a_record_of_before_has_no_origin(tmp_path):
    assert sweep_dir.read_provenance(tmp_path) == Provenance()
    sweep_dir.write_command(tmp_path, ["impl=torch"], [])
    assert sweep_dir.read_provenance(tmp_path) == Provenance()


@pytest.mark.parametrize(
    "name", [*ENVIRONMENT, "status", "command", "impl_target", "mlflow", "kvexp.x", "a b", ".a"]
)
def test_a_name_that_is_taken_or_that_stores_refuse_is_faulty(name):
    assert find_fault(name)


@pytest.mark.parametrize("name", ["team", "a.b-c", "Team_2", "mlflows.own", "x" * 250])
def test_another_name_is_not(name):
    assert find_fault(name) == ""


def test_the_user_is_who_logs_in_to_the_store_else_who_runs(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    assert read_source_tags()["mlflow.user"] == getpass.getuser()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "maria")
    assert read_source_tags()["mlflow.user"] == "maria"


def test_an_account_without_a_name_has_no_tag(monkeypatch):
    def fail():
        raise OSError("no such user")

    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setattr(getpass, "getuser", fail)
    assert "mlflow.user" not in read_source_tags()


def test_the_source_is_the_file_that_python_m_kvexp_runs():
    tags = read_source_tags()
    assert Path(tags["mlflow.source.name"]) == Path(kvexp.__file__).with_name("__main__.py")
    assert tags["mlflow.source.type"] == "LOCAL"


def test_git_tells_commit_branch_and_address_without_a_secret_of_its_checkout_alone(tmp_path, monkeypatch):
    file = tmp_path / "src" / "kvexp" / "results" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.touch()
    own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=trunk")

    def git(*words):
        done = subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def read():
        provenance._read_git_tags.cache_clear()
        found = read_source_tags()
        return {
            key.rpartition(".")[2]: tag for key, tag in found.items() if key.startswith("mlflow.source.git")
        }

    monkeypatch.setattr(provenance, "__file__", str(file))
    assert read() == {}
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=zero")
    assert read() == {}  # it does not hold the file
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    commit = git("rev-parse", "HEAD")
    assert read() == {"commit": commit, "branch": "trunk"}
    git("remote", "add", "origin", "https://maria:secret@example.org/kvexp.git")
    git("remote", "add", "other", "https://example.org/other.git")
    git("checkout", "--quiet", "--detach")
    assert read() == {"commit": commit, "repoURL": "https://maria:***@example.org/kvexp.git"}
