import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from kvexp.errors import ConfigError, TrackingError
from kvexp.tracking import connect, settings, sync_command

SERVER = "http://tracking.example:5000"
ENVIRON = {"MLFLOW_TRACKING_URI": "http://environ.example:5000"}


def uri(kind="local", typed=None, yaml=None, environ=None):
    return settings(kind, typed, yaml, "kvexp", environ or {}).uri


def test_none_never_tracks_whatever_else_is_set():
    assert uri("none", SERVER, SERVER, ENVIRON) is None
    assert connect(settings("none", SERVER, SERVER, "kvexp", ENVIRON)) is None


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, ""),
        ({"typed_uri": SERVER}, f" --to {SERVER}"),
        ({"typed_uri": "http://maria:secret@host:5000"}, " --to 'http://maria:***@host:5000'"),
        ({"experiment": "my runs"}, " --experiment 'my runs'"),
    ],
)
def test_the_command_that_sends_a_sweep_later_names_its_store(monkeypatch, tmp_path, chosen, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    usual = {"kind": "local", "typed_uri": None, "yaml_uri": None, "experiment": "kvexp", "environ": {}}
    home = tmp_path / "multirun" / "2026-11-21" / "10-00"
    assert sync_command(settings(**usual | chosen), home) == f"kvexp sync multirun/2026-11-21/10-00{words}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    assert ("--to" in sync_command(settings(**usual | chosen), home)) == (chosen.get("typed_uri") != SERVER)


def test_a_typed_experiment_wins_over_the_environments_and_that_over_the_yamls():
    def name(environ=None, typed=None):
        return settings("local", None, None, "yaml's", environ or {}, typed).experiment

    environ = {"MLFLOW_EXPERIMENT_NAME": " environment's\n"}
    assert name() == name({"MLFLOW_EXPERIMENT_NAME": ""}) == "yaml's"
    assert name(environ) == "environment's"
    assert name(environ, "typed") == name(typed="typed") == "typed"


def test_the_command_that_sends_a_sweep_later_names_the_experiment_unless_the_environment_does(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    chosen = settings("local", None, None, "kvexp", {"MLFLOW_EXPERIMENT_NAME": "ours"})
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    assert sync_command(chosen, tmp_path / "a") == "kvexp sync a"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert sync_command(chosen, tmp_path / "a") == "kvexp sync a --experiment ours"


def test_a_typed_address_wins_over_the_environment():
    assert uri(typed=SERVER, yaml="http://yaml.example", environ=ENVIRON) == SERVER


def test_the_environment_wins_over_the_yaml():
    assert uri(yaml=SERVER, environ=ENVIRON) == ENVIRON["MLFLOW_TRACKING_URI"]


def test_the_yaml_wins_over_the_default():
    assert uri(yaml=SERVER, environ={"MLFLOW_TRACKING_URI": ""}) == SERVER


def test_the_default_is_a_database_under_mlruns_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def test_a_server_without_an_address_is_a_config_error_that_says_what_to_type():
    with pytest.raises(ConfigError, match=r"tracking\.uri=http://"):
        uri("server")


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ConfigError, match="local, server, none"):
        uri("remote")


@pytest.mark.parametrize("typed", ["runs.db", "./runs.db", "deep/../runs.db"])
def test_a_relative_sqlite_file_becomes_absolute(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    absolute = uri(typed=f"sqlite:///{typed}?timeout=5")
    assert absolute.startswith(f"sqlite:///{tmp_path}/")
    assert absolute.endswith("runs.db?timeout=5")


def test_an_absolute_sqlite_file_stays_and_home_is_expanded():
    assert uri(typed="sqlite:////data/runs.db") == "sqlite:////data/runs.db"
    assert uri(typed="sqlite:///~/runs.db") == f"sqlite:///{Path.home()}/runs.db"


@pytest.mark.parametrize("typed", ["mlruns", "./mlruns", "/data/mlruns", "file:///data/mlruns"])
def test_a_folder_is_refused_with_the_database_to_type_instead(typed):
    with pytest.raises(ConfigError, match=r"is a folder.*use sqlite:////.*/mlruns/mlflow\.db"):
        uri(typed=typed)


def test_a_folder_in_the_environment_is_blamed_on_the_environment():
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI=file:///data"):
        uri(environ={"MLFLOW_TRACKING_URI": "file:///data"})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("localhost:5000", "http://localhost:5000"),
        ("maria:secret@mlflow.example.org:5000/a", "http://maria:***@mlflow.example.org:5000/a"),
        ("[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_a_server_without_a_scheme_is_refused_with_the_address_to_type(typed, meant):
    with pytest.raises(ConfigError, match="so it would be a folder") as raised:
        uri(environ={"MLFLOW_TRACKING_URI": typed})
    assert str(raised.value).startswith("MLFLOW_TRACKING_URI has no scheme")
    assert str(raised.value).endswith(f" {meant}")


def test_a_newline_behind_an_address_is_none_of_it():
    assert uri(environ={"MLFLOW_TRACKING_URI": f" {SERVER}\n"}) == SERVER
    assert uri(environ={"MLFLOW_TRACKING_URI": "sqlite:////data/runs.db\n"}) == "sqlite:////data/runs.db"
    assert uri(yaml=SERVER, environ={"MLFLOW_TRACKING_URI": "\n"}) == SERVER


@pytest.mark.parametrize("typed", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:x.db"])
def test_a_sqlite_address_without_a_file_is_refused(typed):
    with pytest.raises(ConfigError, match="names no file"):
        uri(typed=typed)


@pytest.mark.parametrize("typed", ["postgresql://me:pw@db/runs", "databricks", "databricks://me"])
def test_other_stores_are_mlflows_business(typed):
    assert uri(typed=typed) == typed


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "gopher://x", "sqlite:////proc/none/x.db"])
def test_a_store_out_of_reach_is_a_tracking_error_of_one_sentence(address):
    with pytest.raises(TrackingError, match="cannot be used") as raised:
        connect(settings("server", address, None, "kvexp", {}))
    assert "\n" not in str(raised.value)
    assert address in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"no", b"no database " * 200, b"SQLite format 3\0" + b"garbage" * 99]
)
def test_a_short_or_broken_sqlite_file_is_a_database_or_a_tracking_error_at_once(tmp_path, content):
    file = tmp_path / "mlflow.db"
    file.write_bytes(content)
    begin = time.monotonic()
    with pytest.raises(TrackingError, match="not a database") if content else nullcontext():
        connect(settings("local", f"sqlite:///{file}", None, "kvexp", {}))
    assert not content or time.monotonic() - begin < 60


def test_a_folder_in_the_databases_place_is_a_tracking_error_at_once(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=r"cannot be used: .*mlflow\.db is a folder"):
        connect(settings("local", f"sqlite:///{tmp_path}/mlflow.db", None, "kvexp", {}))
    assert time.monotonic() - begin < 60


def test_a_file_in_the_stores_place_is_named(tmp_path):
    (tmp_path / "mlruns").touch()
    with pytest.raises(TrackingError, match=r"cannot make the folder .*/mlruns: .*/mlruns is a file"):
        connect(settings("local", f"sqlite:///{tmp_path}/mlruns/mlflow.db", None, "kvexp", {}))


def test_a_question_mark_in_the_folders_path_sends_the_database_nowhere_else(tmp_path, monkeypatch):
    folder = tmp_path / "who?me=you"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for typed in (None, "sqlite:///runs.db", "sqlite:////data/what?.db"):
        with pytest.raises(TrackingError, match=r"a \? ends the file's path"):
            connect(settings("local", typed, None, "kvexp", {}))
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_connecting_leaves_what_the_user_set(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError):
        connect(settings("server", "http://127.0.0.1:9", None, "kvexp", {}))
    assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.getenv("MLFLOW_TRACKING_URI")) == ("33", None)
