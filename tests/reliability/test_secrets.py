"""The secrets in a store's address are shown nowhere, written nowhere and sent nowhere."""

import pytest

SECRET = "hunter2Zz91"
ADDRESSES = {
    "token": f"https://{SECRET}@127.0.0.1:9",
    "password": f"postgresql://maria:{SECRET}@127.0.0.1:9/runs",
    "query of a password": f"postgresql://127.0.0.1:9/runs?user=maria&password={SECRET}",
    "query of a token": f"http://127.0.0.1:9/?token={SECRET}",
    "odbc": f"mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BPWD%3D{SECRET}",
}
SWEEP = ("impl=torch", "workload=tiny", "timer=none", "device=cpu")
pytestmark = pytest.mark.long


def check_masked(place, type_in, set_variable, address, sweep=SWEEP):
    """What names the address works, here and at the address that cannot be used, and shows no secret."""
    typed = f"tracking.uri='{address}'"
    commands = [
        (*sweep, typed),
        ("sync", "--to", address),
        ("report", "multirun"),
        ("sync",),  # to the store here: the tags, the configuration and the report
    ]
    done = [type_in(*words) for words in commands]
    set_variable("MLFLOW_TRACKING_URI", address)
    done.append(type_in(*sweep))
    assert [one.returncode for one in done] == [0, 1, 0, 0, 0], [one.stderr for one in done]
    for one in done:
        assert SECRET not in one.stdout + one.stderr
    assert all("***" in done[number].stderr for number in (0, 1)), [one.stderr for one in done]
    files = [file for file in place.folder.rglob("*") if file.is_file()]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    masked = {file.name for file in files if b"***" in file.read_bytes()}
    assert masked >= {"multirun.yaml", "config.yaml", "overrides.yaml"}
    assert {"mlflow.db", "report.html", "command.json"} <= {file.name for file in files}


@pytest.mark.usefixtures("inline_tracker")
@pytest.mark.parametrize("form", ADDRESSES)
def test_a_secret_of_an_address_is_masked_wherever_it_could_be(place, typed, monkeypatch, form):
    check_masked(place, typed, monkeypatch.setenv, ADDRESSES[form], (*SWEEP, "isolation=inline"))


def test_a_secret_is_masked_by_every_process(place, monkeypatch):
    def set_variable(*item):
        monkeypatch.setattr(type(place), "environment", place.environment | dict([item]))

    check_masked(place, place.run, set_variable, ADDRESSES["odbc"])


@pytest.mark.parametrize("form", ADDRESSES)
def test_what_is_refused_says_what_was_typed_without_its_secret(typed, form):
    address = ADDRESSES[form]
    word = f"tracking.uri='{address}'"
    for words, shows in (
        ((*SWEEP, word, "impl.threads=0"), False),
        ((*SWEEP, word, word), True),
        ((*SWEEP, word.replace("uri", "url")), False),
        (("report", address), True),
    ):
        done = typed(*words)
        assert (done.returncode, SECRET in done.stdout + done.stderr) == (2, False)
        assert "***" in done.stderr or not shows, done.stderr
