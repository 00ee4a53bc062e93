"""The secrets in a store's address are shown nowhere, written nowhere and sent nowhere."""

import pytest

from tests.reliability.conftest import TINY

SECRET = "hunter2Zz91"
ADDRESSES = {
    "token": f"https://{SECRET}@127.0.0.1:9",
    "password": f"postgresql://maria:{SECRET}@127.0.0.1:9/runs",
    "query of a password": f"postgresql://127.0.0.1:9/runs?user=maria&password={SECRET}",
    "query of a token": f"http://127.0.0.1:9/?token={SECRET}",
    "odbc": f"mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BPWD%3D{SECRET}",
}
pytestmark = pytest.mark.long


def check_masked(place, done):
    """No command has shown the secret, and no file holds it."""
    for one in done:
        assert SECRET not in one.stdout + one.stderr
    assert all("***" in done[number].stderr for number in (0, 1)), [one.stderr for one in done]
    files = [file for file in place.folder.rglob("*") if file.is_file()]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    masked = {file.name for file in files if b"***" in file.read_bytes()}
    assert masked >= {"multirun.yaml", "config.yaml", "overrides.yaml"}
    return {file.name for file in files}


@pytest.mark.usefixtures("inline_tracker", "database")
@pytest.mark.parametrize("form", ["token", "odbc"])
def test_a_secret_of_an_address_is_masked_wherever_it_could_be(place, typed, monkeypatch, form):
    """Type an address that works and one that cannot be used: no file and no line shows its secret."""
    address = ADDRESSES[form]
    commands = [
        (*TINY, f"tracking.uri='{address}'"),
        ("sync", "--to", address),
        ("report", "multirun"),
        ("sync",),  # to the store here: the tags, the configuration and the report
    ]
    done = [typed(*words) for words in commands]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    done.append(typed(*TINY))
    assert [one.returncode for one in done] == [0, 1, 0, 0, 0], [one.stderr for one in done]
    assert {"mlflow.db", "report.html", "command.json"} <= check_masked(place, done)


def test_a_secret_is_masked_by_every_process(place, monkeypatch):
    address = ADDRESSES["odbc"]
    monkeypatch.setattr(type(place), "environment", place.environment | {"MLFLOW_TRACKING_URI": address})
    commands = ((*TINY[:-1], f"tracking.uri='{address}'"), ("sync",))
    done = [place.run(*words) for words in commands]
    assert [one.returncode for one in done] == [0, 1], [one.stderr for one in done]
    check_masked(place, done)


@pytest.mark.parametrize("form", ADDRESSES)
def test_what_is_refused_says_what_was_typed_without_its_secret(typed, form):
    address = ADDRESSES[form]
    word = f"tracking.uri='{address}'"
    for words, shows in (
        ((*TINY, word, "impl.threads=0"), False),
        ((*TINY, word, word), True),
        ((*TINY, word.replace("uri", "url")), False),
        (("report", address), True),
    ):
        done = typed(*words)
        assert (done.returncode, SECRET in done.stdout + done.stderr) == (2, False)
        assert "***" in done.stderr or not shows, done.stderr
